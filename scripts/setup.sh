#!/usr/bin/env bash
# Makes a virtual environment from a lock file and installs Requery into it.
#
#   scripts/setup.sh serve   what `make serve` needs: the CPU or the NVIDIA lock, as the machine is
#   scripts/setup.sh dev     the CPU lock, training libraries and test tools
#
# Prints the environment's folder as its last line. A stamp with the lock's hash makes the second
# time quick. The CPU and dev profiles share .venv: the dev lock is the CPU lock and more, with the
# same pins, and sharing saves gigabytes. The NVIDIA build cannot live beside the CPU build, so it
# has .venv-gpu.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=${1:?usage: scripts/setup.sh serve|dev}
python=${PYTHON:-python3.11}
torch_index=https://download.pytorch.org/whl/cpu

has_nvidia() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }

case $profile in
  dev) lock=dev ;;
  serve)
    case ${REQUERY_DEVICE:-auto} in
      auto) if has_nvidia; then lock=gpu; else lock=cpu; fi ;;
      cpu) lock=cpu ;;
      cuda) lock=gpu ;;
      *) echo "REQUERY_DEVICE is auto, cpu or cuda, not '$REQUERY_DEVICE'" >&2; exit 2 ;;
    esac ;;
  *) echo "usage: scripts/setup.sh serve|dev" >&2; exit 2 ;;
esac
if [ "$lock" = gpu ]; then venv=${VENV_GPU:-.venv-gpu}; else venv=${VENV:-.venv}; fi
file=requirements/$lock.txt

hash_of() { cat "$1" pyproject.toml scripts/setup.sh | sha256sum | cut -d' ' -f1; }
stamped() { [ "$(cat "$venv/.requery-$1" 2>/dev/null)" = "$(hash_of "requirements/$1.txt")" ]; }

mkdir -p "$venv"
# Two makes at once take turns.
exec 9>"$venv/.requery-lock"
flock 9

if stamped "$lock" || { [ "$lock" = cpu ] && stamped dev; }; then
  echo "$venv"
  exit 0
fi

if ! command -v "$python" >/dev/null; then
  echo "requery needs Python 3.11 as '$python'; install it, or say PYTHON=/path/to/python3.11" >&2
  exit 1
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$version" != 3.11 ]; then
  echo "the lock files are for Python 3.11, '$python' is $version; say PYTHON=/path/to/python3.11" >&2
  exit 1
fi

say() { echo "[setup] $*" >&2; }

# Installing fails late and unclearly on a full disk, so a new environment is not begun there.
need_room() { # folder, MB
  local free
  free=$(df -Pm "$1" | awk 'NR == 2 {print $4}')
  if [ "${free:-$2}" -lt "$2" ]; then
    say "installing needs about $2 MB at $1, and $free MB are free there"
    say "make room, or use another disk: the clone holds the environment, TMPDIR what pip unpacks"
    exit 1
  fi
}
if [ ! -d "$venv/lib" ]; then
  case $lock in
    cpu) need_room "$venv" 4000 ;;
    dev) need_room "$venv" 6000 ;;
    gpu) need_room "$venv" 14000 ;;
  esac
  need_room "${TMPDIR:-/tmp}" 2000
fi

log=$venv/install.log
: >"$log"
pip_install() { "$venv/bin/python" -m pip install --disable-pip-version-check --no-compile "$@" >>"$log" 2>&1; }
fail() {
  say "installing failed; the end of $log:"
  grep -v '^WARNING: Location' "$log" | tail -n 15 >&2
  exit 1
}

# The tests of the console drive a Chromium. Without one they are skipped, so this never fails.
has_browser() {
  local name
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null; then return 0; fi
  done
  compgen -G "${PLAYWRIGHT_BROWSERS_PATH:-$HOME/.cache/ms-playwright}/chromium-*" >/dev/null
}
apt_install() { # package, what for; whether it came is for the caller to find out
  local root=()
  if [ "$(id -u)" != 0 ]; then root=(sudo -n); fi
  if command -v apt-get >/dev/null && "${root[@]}" true 2>/dev/null; then
    say "installing $1, for $2"
    { timeout 120 "${root[@]}" apt-get update
      timeout 300 "${root[@]}" apt-get install -y --no-install-recommends "$1"; } >>"$log" 2>&1 </dev/null || true
  fi
}
get_browser() {
  has_browser && return 0
  apt_install chromium "the tests of the console"
  has_browser && return 0
  say "having playwright get chromium, for the tests of the console"
  timeout 300 "$venv/bin/playwright" install chromium >>"$log" 2>&1 </dev/null ||
    say "there is no browser: the tests of the console will be skipped"
}
# The same goes for the tests of metrics, dashboards and alerts.
get_prometheus() {
  command -v promtool >/dev/null && return 0
  apt_install prometheus "the tests of metrics and alerts"
  command -v promtool >/dev/null || say "there is no Prometheus: tests that need one will be skipped"
}
# And for those of clients in other languages.
get_clients() {
  command -v javac >/dev/null || apt_install openjdk-17-jdk-headless "the tests of the Java client"
  command -v npm >/dev/null || apt_install npm "the tests of the TypeScript client"
  command -v javac >/dev/null || say "there is no JDK: tests that need one will be skipped"
  (cd examples/typescript && timeout 300 npm ci --no-audit --no-fund) >>"$log" 2>&1 </dev/null ||
    say "npm brought no TypeScript: the test of its client will be skipped"
}

say "making $venv from $file (a few minutes, once)"
"$python" -m venv "$venv" >>"$log" 2>&1 || fail
rm -f "$venv"/.requery-cpu "$venv"/.requery-dev "$venv"/.requery-gpu

# --no-deps: the lock is complete, and leaves out what is not needed (see scripts/lock.sh).
if [ "$lock" != gpu ]; then
  # The CPU build of torch is not on the ordinary index: wherever pip is configured to look, else
  # the PyTorch project's own index. First, so that nothing brings another build.
  torch=$(grep -o '^torch==[^ ]*' "$file")
  pip_install --no-deps "$torch" || pip_install --no-deps "$torch" --index-url "$torch_index" || fail
fi
pip_install --no-deps -r "$file" || fail
say "installing requery"
pip_install --no-deps --no-build-isolation -e . || fail
if [ "$lock" = dev ]; then get_browser; get_prometheus; get_clients; fi
say "compiling byte code"
"$venv/bin/python" -m compileall -q -j 0 "$venv/lib" >>"$log" 2>&1 || true

hash_of "$file" >"$venv/.requery-$lock"
say "done"
echo "$venv"
