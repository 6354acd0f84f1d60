"""Print the assembly of a kernel for another processor, such as the M1 that is not at hand.

    python scripts/emit_assembly.py matmul_int8 arm64-apple-macosx apple-m1

Numba's front end makes the same code as ever, told that it is for that processor; LLVM then optimizes it for that
target and writes assembly, which nothing here could run. The kernel is the name of an `Operation` without its
`_operation`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core import codegen
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys
from numba.core.runtime.nrtdynmod import create_nrt_module


def pretend(triple: str, cpu: str, features: str = "") -> None:
    """From now on kernels are made for that processor, and never translated into this one's machine code.

    Must be called before `tinylm.kernels` is imported: its tiles take their shapes from the processor.
    """
    numba.njit("float32[:](int64)")(
        lambda n: np.empty(n, np.float32)
    )  # Numba's own runtime is compiled by now
    library = codegen.CPUCodeLibrary
    for step in ("_optimize_final_module", "_optimize_functions"):
        setattr(library, step, lambda self, *arguments: None)
    for subclass in (codegen.JITCodeLibrary, library):
        subclass._finalize_specific = lambda self: None
    target: Any = cpu_target.target_context.codegen()
    target.magic_tuple = lambda: (triple, cpu, features)
    target._add_module = lambda module: None
    context: Any = cpu_target.target_context
    # never called, but Numba knows a function by it: a built-in one, another for each
    context.get_executable = lambda library, fndesc, environment: [].append
    # The runtime's own code was made for this processor already: once more, untranslated.
    with global_compiler_lock:
        module, rtsys._library = create_nrt_module(context)
        rtsys._library.add_ir_module(module)
        rtsys._library.finalize()

    from tinylm.kernels import compiler, target

    target.target = lambda: (triple, cpu, features)  # type: ignore[assignment]
    compiler.KernelCache.load_overload = lambda self, sig, target_context: None  # type: ignore[method-assign]
    compiler.KernelCache.save_overload = lambda self, sig, data: None  # type: ignore[method-assign]


def operations() -> dict[str, Any]:
    """Every operation of the kernels, by its name without `_operation`."""
    import tinylm.kernels as package
    from tinylm.kernels.jit import Operation

    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        for value in vars(importlib.import_module(f"tinylm.kernels.{module.name}")).values():
            if isinstance(value, Operation):
                found[value.name.removesuffix("_operation")] = value
    return found


def assembly(operation: Any, triple: str, cpu: str, features: str = "") -> str:
    """The assembly of one operation for a processor, after `pretend` of the same."""
    from tinylm.kernels.compiler import operation_module, strip

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3)
    lines = [
        line
        for line in str(strip(operation_module(operation.function), operation.name)).splitlines()
        if not line.startswith(("target triple", "target datalayout"))
    ]
    header = [f'target triple = "{triple}"', f'target datalayout = "{machine.target_data}"']
    module = llvm.parse_assembly("\n".join(header + lines))
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = True
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return str(machine.emit_assembly(module))


def main() -> int:
    """Print the assembly that the arguments ask for, or the names of the kernels."""
    if len(sys.argv) < 4:
        print(__doc__)
        return 2
    name, triple, cpu = sys.argv[1:4]
    pretend(triple, cpu, *sys.argv[4:5])
    found = operations()
    if name not in found:
        print(f"{name!r} is none of: {', '.join(sorted(found))}", file=sys.stderr)
        return 2
    print(assembly(found[name], triple, cpu, *sys.argv[4:5]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
