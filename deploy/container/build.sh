#!/usr/bin/env bash
# Builds the image without Docker or a daemon, with Debian's buildah, as root: `make image`.
#
#   deploy/container/build.sh [--target cpu|nvidia] [--tag NAME] [--base IMAGE | --debootstrap]
#                             [--host-config]
#
#   --debootstrap  makes the base image (Debian 12 and its Python 3.11) with debootstrap, where no
#                  registry of images can be reached
#   --host-config  installs with this machine's configuration of pip: its indexes, its folders of
#                  wheels and its certificates. Nothing of it stays in the image.
#
# STORAGE is the folder of images (default: build/image), 15 GB while it builds; STORAGE_DRIVER is
# buildah's, else overlay, else vfs, which keeps a copy of everything for each layer.
# Prints the seconds it took and the size of the image.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=cpu tag= base= debootstrap= host_config=
while [ $# -gt 0 ]; do
  case $1 in
    --target) target=$2; shift 2 ;;
    --tag) tag=$2; shift 2 ;;
    --base) base=$2; shift 2 ;;
    --debootstrap) debootstrap=yes; shift ;;
    --host-config) host_config=yes; shift ;;
    *) sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2 ;;
  esac
done
tag=${tag:-requery:$target}

fail() { echo "image: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "buildah's isolation 'chroot' needs root"
command -v buildah >/dev/null || fail "install buildah (and debootstrap) first"

mkdir -p "${STORAGE:-build/image}"
storage=$(realpath "${STORAGE:-build/image}")
mkdir -p "$storage/tmp"
export TMPDIR=$storage/tmp
store() { buildah --storage-driver "$driver" --root "$storage/root" --runroot "$storage/run" "$@"; }
driver=${STORAGE_DRIVER:-overlay}
if [ -z "${STORAGE_DRIVER:-}" ] && ! store info >/dev/null 2>&1; then driver=vfs; fi
unset STORAGE_DRIVER
echo "$driver" >"$storage/driver"

make_base() { # name of the image
  local root=$storage/base
  rm -rf "$root"
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-dev \
    bookworm "$root" >"$storage/debootstrap.log" 2>&1 || fail "see $storage/debootstrap.log"
  rm -rf "$root"/usr/share/{doc,man,locale,info}/* "$root"/var/lib/apt/lists/* \
    "$root"/var/cache/apt/* "$root"/var/log/*
  # What is installed on top brings fewer files of no use, and does not wait for the disk at each.
  { printf 'path-exclude /usr/share/%s/*\n' doc man locale info; echo force-unsafe-io; } \
    >"$root/etc/dpkg/dpkg.cfg.d/image"
  echo 'Acquire::Languages "none";' >"$root/etc/apt/apt.conf.d/image"
  local container
  container=$(store from scratch)
  store copy "$container" "$root" / >/dev/null
  store config --cmd python3 --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  store commit --rm --timestamp "$epoch" "$container" "$1" >/dev/null
  rm -rf "$root"
}

started=$SECONDS
# The same files get the same layers, whenever they are built.
epoch=${SOURCE_DATE_EPOCH:-315532800}
options=(--isolation chroot --format docker --timestamp "$epoch" --target "$target" --tag "$tag")
if [ "$driver" = vfs ]; then options+=(--layers=false); else options+=(--layers); fi
if [ -n "$debootstrap" ]; then
  base=localhost/requery-base:bookworm
  store inspect --type image "$base" >/dev/null 2>&1 || make_base "$base"
fi
if [ -n "$base" ]; then options+=(--build-arg "BASE_IMAGE=$base"); fi
if [ -n "$host_config" ]; then
  readarray -t given < <(deploy/container/host_config.py "$storage/pip.conf")
  options+=(--secret "id=pip,src=$storage/pip.conf" "${given[@]}")
fi

store build "${options[@]}" . 2>&1 | tee "$storage/build.log"

echo "image: $tag in $((SECONDS - started)) s, $(store images --format '{{.Size}}' "$tag")"
