#!/bin/sh
# Makes the keys of a small set-up once, and says where they are:
#
#   make-keys.sh HASHES KEYS METRICS
#
# HASHES/keys.yaml is for the service, METRICS/requery_metrics_key for Prometheus, KEYS/backend
# (scope rewrite) and KEYS/ops (scope admin) for people.
set -eu
umask 022
hashes=$1 keys=$2 metrics=$3

make_key() { # name, scope, file for the key
  if [ -s "$3" ]; then return; fi
  # The second line on standard error is the key; the entry goes to standard output.
  requery keys new --name "$1" --scope "$2" 2>&1 >"$keys/entry" | sed -n 2p >"$keys/key"
  if ! [ -s "$keys/key" ] || ! [ -s "$keys/entry" ]; then
    echo "make-keys: requery made no key" >&2
    exit 1
  fi
  cat "$keys/entry" >>"$hashes/keys.new"
  mv "$keys/key" "$3"
}

# In a file of its own until it is whole: the service reads keys.yaml whenever it changes.
cat "$hashes/keys.yaml" >"$hashes/keys.new" 2>/dev/null || true
make_key backend rewrite "$keys/backend"
make_key ops admin "$keys/ops"
make_key prometheus metrics "$metrics/requery_metrics_key"
rm -f "$keys/entry"
mv "$hashes/keys.new" "$hashes/keys.yaml"
requery keys check "$hashes/keys.yaml"
