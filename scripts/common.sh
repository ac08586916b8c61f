# What both scripts need; to be sourced from the top of the checkout.

say() { printf '%s\n' "$*" >&2; }

# A Python that this project supports (3.11 or newer), the system's own first.
find_python() {
    local name
    for name in python3 /usr/bin/python3 python3.13 python3.12 python3.11 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[1-3].*/bin/python3; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# Debian packages, quietly, and without starting the servers that some of them bring.
install_packages() {
    local log policy=/usr/sbin/policy-rc.d made_policy='' status=0
    log=$(mktemp)
    say "installing Debian packages: $*"
    if [ ! -e "$policy" ] && printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"; then
        made_policy=yes
    fi
    {
        apt-get update -qq &&
            DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@"
    } </dev/null >"$log" 2>&1 || status=$?
    [ -z "$made_policy" ] || rm -f "$policy"
    [ "$status" -eq 0 ] || { say "apt-get failed:"; tail -n 20 "$log" >&2; }
    rm -f "$log"
    return "$status"
}

can_install() { [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; }

# .venv, made anew when it is missing or its interpreter has gone.
make_venv() {
    local python
    if .venv/bin/python -m pip --version >/dev/null 2>&1; then
        return
    fi
    if ! python=$(find_python) || ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        if ! can_install; then
            say "Python 3.11 or newer with its venv module is needed: apt-get install python3 python3-venv"
            return 1
        fi
        install_packages python3 python3-venv || return
        python=$(find_python) || { say "this system's Python is older than 3.11"; return 1; }
    fi
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
}
