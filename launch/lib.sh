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
# From bash 5.2 on, & in what replaces a pattern would stand for the match.
shopt -u patsub_replacement 2>/dev/null || true

say() { printf '%s: %s\n' "$SCRIPT" "$*" >&2; }

die() {
    say "$@"
    exit 2
}

# The comment at the head of the script is its help.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

# Prints a command so that it can be pasted into a shell; words that need no quotes get none.
quote() {
    local word line='' single="'" escaped="'\\''"
    for word; do
        case $word in
            '' | *[!A-Za-z0-9_@%+=:,./-]*) word="'${word//$single/$escaped}'" ;;
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

# The same for a command that reads the text $1.
run_with_input() {
    local text=$1
    shift
    if ((DRY_RUN)); then
        printf "%s <<'END'\n%s\nEND\n" "$(quote "$@")" "$text"
    else
        say "$(quote "$@")"
        "$@" <<<"$text"
    fi
}

# parse "NAME= FLAG ..." ARGUMENT...: sets $NAME from --NAME=VALUE, FLAG=1 from --FLAG, and MAIN_ARGS.
parse() {
    local known=" $1 dry_run " option
    shift
    while (($#)); do
        option=${1#--}
        option=${option%%=*}
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
                [[ $known == *" $option= "* ]] || die "$1 is not an option; they are:$(options "$known")"
                printf -v "$option" '%s' "${1#*=}"
                ;;
            --*)
                [[ $known != *" $option= "* ]] || die "--$option needs a value: --$option=..."
                [[ $known == *" $option "* ]] || die "$1 is not an option; they are:$(options "$known")"
                printf -v "${option/dry_run/DRY_RUN}" 1
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
    local option
    for option; do
        [[ -n ${!option} ]] || die "--$option=... is missing; see $SCRIPT --help"
    done
}

# Stops unless these variables hold whole numbers.
require_numbers() {
    local option
    for option; do
        [[ ${!option} =~ ^[0-9]+$ ]] || die "--$option=${!option} is not a whole number"
    done
}

# Stops unless --config and --workdir are among the arguments of vmae_jax.main.
require_main_args() {
    local flag word previous=''
    for flag in config workdir; do
        [[ " ${MAIN_ARGS[*]-}" == *" --$flag"[=\ ]* ]] ||
            die "--$flag is missing from the arguments of vmae_jax.main: $SCRIPT ... -- --config=FILE --workdir=DIR"
    done
    for word in "${MAIN_ARGS[@]}"; do
        [[ $word != --workdir=*://* && "$previous $word" != "--workdir "*://* ]] ||
            die "$word: the workdir is a folder; mount the bucket, or a file server, on all hosts"
        previous=$word
    done
}

# Stops if a program is not there; a dry run needs none.
require_program() {
    ((DRY_RUN)) || command -v "$1" >/dev/null ||
        die "$1 is not installed or not in PATH: $2. With --dry_run the commands are only printed."
}

# For the scripts that use Google's TPU hosts.

HOST_FOLDER=/srv/vmae_jax # of the repository, there

# archive COMMIT: packs the repository at a commit; sets COMMIT and ARCHIVE.
archive() {
    COMMIT=$(git -C "$REPOSITORY" rev-parse --quiet --verify --short=12 "$1^{commit}") ||
        die "--commit=$1 is not a commit of $REPOSITORY"
    [[ -z $(git -C "$REPOSITORY" status --porcelain) ]] ||
        say "note: what is not committed is not copied; the hosts get $COMMIT"
    ARCHIVE="${TMPDIR:-/tmp}/vmae_jax-$COMMIT.tar.gz"
    run git -C "$REPOSITORY" archive --format=tar.gz "--output=$ARCHIVE" "$COMMIT"
}

# Software for a type of TPU, as Google names both.
tpu_runtime() {
    case $1 in
        v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
        v5litepod-*) echo v2-alpha-tpuv5-lite ;;
        v5p-*) echo v2-alpha-tpuv5 ;;
        v6e-*) echo v2-alpha-tpuv6e ;;
        *) die "--type=$1 is not one of v4-N, v5litepod-N, v5p-N, v6e-N; name its software with --runtime=..." ;;
    esac
}
