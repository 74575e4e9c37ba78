#!/bin/sh
# Installs the clients with which the tests use kiln serve into a folder of their own.
#
#   tools/setup/clients.sh [FOLDER]
set -eu
cd "$(dirname "$0")/../.."
. tools/setup/packages.sh

CLIENTS="webuiapi==0.9.17 openai==3.57.0 pillow==13.0.0"
folder=${1:-target/clients}
[ "$(cat "$folder/installed" 2>/dev/null)" != "$CLIENTS" ] || exit 0
python3 -c "import ensurepip" 2>/dev/null || install_packages python3 python3-venv
# Test programs may call this at once.
mkdir -p "$(dirname "$folder")"
exec 9>"$folder.lock"
flock 9
[ "$(cat "$folder/installed" 2>/dev/null)" != "$CLIENTS" ] || exit 0
rm -rf "$folder"
python3 -m venv "$folder"
# shellcheck disable=SC2086
"$folder/bin/pip" install --quiet --disable-pip-version-check $CLIENTS
echo "$CLIENTS" >"$folder/installed"
