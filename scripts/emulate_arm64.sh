#!/bin/sh
# Run tests on an emulated 64-bit ARM Linux. For Debian and Ubuntu, as root.
#
#   scripts/emulate_arm64.sh tests/kernels/test_linker.py -x
#   scripts/emulate_arm64.sh -- python3 -m tinylm generate "Once upon a time"
#
# The arguments are pytest's, or after -- a command; the checkout is copied in anew each time, as it stands.
# The first run makes the system, in ARM64_ROOT (default: arm64 in the folder for temporary files); delete that
# folder to be rid of it. Kernels stay cached in it. They are compiled for an M1, 20 times as slowly as by an M1.
#
# What this cannot show: an x86 machine keeps its own, stronger order of loads and stores while it emulates, so a
# missing acquire or release goes unpunished here. tests/kernels/test_apple_m1.py looks for the instructions.
set -eu

root=${ARM64_ROOT:-${TMPDIR:-/tmp}/arm64}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
release=bookworm python=3.11
packages="numba numpy safetensors regex pytest hypothesis tokenizers jinja2 gguf pexpect"
checkout=$(cd "$(dirname "$0")/.." && pwd)

if [ "$(id -u)" != 0 ]; then
    echo "emulate_arm64.sh must be run by root: it makes a file system and mounts" >&2
    exit 2
fi

enter() { # a command in the emulated system; its mounts end with it
    unshare --mount sh -c '
        root=$1
        shift
        mount --bind /proc "$root/proc"
        mount --rbind /dev "$root/dev"
        exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb \
            NUMBA_CPU_NAME=apple-m1 PYTHONPATH=/tinylm chroot "$root" "$@"
    ' sh "$root" "$@"
}

for command in qemu-aarch64-static update-binfmts debootstrap git; do
    if ! command -v $command > /dev/null; then
        apt-get update
        apt-get install -y --no-install-recommends \
            qemu-user-static binfmt-support debootstrap debian-archive-keyring git python3-pip
        break
    fi
done
binfmt=/proc/sys/fs/binfmt_misc
[ -e $binfmt/register ] || mount -t binfmt_misc binfmt_misc $binfmt
[ -e $binfmt/qemu-aarch64 ] || update-binfmts --enable qemu-aarch64

if [ ! -e "$root/complete" ]; then
    rm -rf "$root"
    mkdir -p "$root"
    debootstrap --foreign --arch=arm64 --variant=minbase --include=python3,ca-certificates \
        $release "$root" "$mirror"
    enter /debootstrap/debootstrap --second-stage
    # This system's own pip fetches the wheels, with its configuration, and puts them in place.
    platforms="--platform manylinux2014_aarch64"
    for glibc in 17 24 26 27 28 31 34 35 36; do
        platforms="$platforms --platform manylinux_2_${glibc}_aarch64"
    done
    # shellcheck disable=SC2086 # lists of words
    ${PYTHON:-python3} -m pip install --target "$root/usr/lib/python3/dist-packages" --only-binary=:all: \
        --implementation cp --python-version $python $platforms $packages
    touch "$root/complete"
fi

rm -rf "$root/tinylm"
mkdir "$root/tinylm"
git -c safe.directory="$checkout" -C "$checkout" ls-files -z |
    tar -C "$checkout" --null --files-from=- --ignore-failed-read -cf - | tar -C "$root/tinylm" -xf -

if [ "${1:-}" = -- ]; then
    shift
else
    set -- python3 -m pytest -p no:cacheprovider "$@"
fi
# shellcheck disable=SC2016 # the inner shell's
enter sh -c 'cd /tinylm && exec "$@"' sh "$@"
