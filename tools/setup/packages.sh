# Sourced by scripts that need Debian packages.

apt_get() {
    sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo"
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >/dev/null
}

is_installed() {
    dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q "install ok installed"
}

# Says whether this release of Debian has a package; of other systems nothing is known.
is_offered() {
    command -v apt-cache >/dev/null || return 0
    apt-cache show "$1" >/dev/null 2>&1 && return
    apt_get update 2>/dev/null || true
    apt-cache show "$1" >/dev/null 2>&1
}

# Installs those of the named packages that are missing.
install_packages() {
    missing=""
    for package in "$@"; do
        is_installed "$package" || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null; then
        echo "Install with your package manager, by Debian's names:$missing" >&2
        return 1
    fi
    if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
        echo "Packages are missing; as root: apt-get install$missing" >&2
        return 1
    fi
    echo "Installing$missing" >&2
    # shellcheck disable=SC2086
    if ! apt_get update || ! apt_get install -y --no-install-recommends $missing; then
        echo "Packages were not installed; as root: apt-get install$missing" >&2
        return 1
    fi
}
