# shellcheck shell=bash disable=SC2034 # variables here are for the scripts that source it
# Shared by the launch scripts, which source it: options, messages, and one way to print or execute.
#
# A script builds each command once and hands it to `run`; so what --dry_run prints is what would be
# executed, quoted for a shell. Anything else that a script executes only looks.

DRY_RUN=0
MAIN_ARGS=() # what follows --: arguments of vmae_jax.main
LAUNCH="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
REPOSITORY="$(dirname "$LAUNCH")"
SCRIPT="${0##*/}"

say() { printf '%s: %s\n' "$SCRIPT" "$*" >&2; }

die() {
    say "$@"
    exit 2
}

# The comment at the head of the script is its help.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

# Prints a command so that it can be pasted into a shell; words that need no quotes get none.
quote() {
    local word line=
    for word; do
        case $word in
            '' | *[!A-Za-z0-9_@%+=:,./-]*) word="'${word//\'/\'\\\'\'}'" ;;
        esac
        line+="${line:+ }$word"
    done
    printf '%s\n' "$line"
}

# Executes a command, or prints it.
run() {
    if ((DRY_RUN)); then
        quote "$@"
    else
        say "$(quote "$@")"
        "$@"
    fi
}

# parse "NAME= FLAG ..." ARGUMENT...: sets $NAME from --NAME=VALUE, FLAG=1 from --FLAG, and MAIN_ARGS.
parse() {
    local known=" $1 dry_run " name
    shift
    while (($#)); do
        name=${1#--}
        name=${name%%=*}
        case $1 in
            --help | -h)
                usage
                exit 0
                ;;
            --)
                shift
                MAIN_ARGS=("$@")
                return
                ;;
            --*=*)
                [[ $known == *" $name= "* ]] || die "$1 is not an option; they are:$(options "$known")"
                printf -v "$name" '%s' "${1#*=}"
                ;;
            --*)
                [[ $known != *" $name= "* ]] || die "--$name needs a value: --$name=..."
                [[ $known == *" $name "* ]] || die "$1 is not an option; they are:$(options "$known")"
                printf -v "${name/dry_run/DRY_RUN}" 1
                ;;
            *) die "'$1' is out of place; options come first, then -- and the arguments of vmae_jax.main" ;;
        esac
        shift
    done
}

options() {
    local names
    read -ra names <<<"$1"
    printf ' --%s' "${names[@]}"
}

# Stops unless all these variables, which are options, have a value.
require() {
    local name
    for name; do
        [[ -n ${!name} ]] || die "--$name=... is missing; see $SCRIPT --help"
    done
}

# Stops unless these variables hold whole numbers.
require_numbers() {
    local name
    for name; do
        [[ ${!name} =~ ^[0-9]+$ ]] || die "--$name=${!name} is not a whole number"
    done
}

require_main_args() {
    local flag
    for flag in config workdir; do
        [[ " ${MAIN_ARGS[*]-}" == *" --$flag"[=\ ]* ]] ||
            die "--$flag is missing from the arguments of vmae_jax.main: $SCRIPT ... -- --config=FILE --workdir=DIR"
    done
}

# Stops if a program is not there; a dry run needs none.
require_program() {
    ((DRY_RUN)) || command -v "$1" >/dev/null ||
        die "$1 is not installed or not in PATH: $2. With --dry_run the commands are only printed."
}
