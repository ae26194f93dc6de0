#!/usr/bin/env bash
# Looks for counterexamples far longer than `make test` does, and ends by itself.
#
#   scripts/fuzz.sh [--requests 20000] [--seconds 3600] [--seed N]
#
# First the properties of tests/fuzz with FUZZ_EXAMPLES (default 1000) random examples each; then
# requests by the thousand, made of the OpenAPI document (tests/contract). The last lines are a
# summary in JSON. Exits with 1 if anything was found, with 2 if time was up too early.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${VENV:-.venv}/bin/python
FUZZ_EXAMPLES=${FUZZ_EXAMPLES:-1000} "$python" -m pytest -q -o timeout=3600 tests/fuzz
properties=$?
"$python" -m tests.contract "$@"
requests=$?
if [ "$properties" -ne 0 ]; then exit 1; fi
exit "$requests"
