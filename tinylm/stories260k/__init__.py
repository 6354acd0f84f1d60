"""The bundled story model: data only."""
