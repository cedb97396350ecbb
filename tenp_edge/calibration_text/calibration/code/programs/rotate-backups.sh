#!/usr/bin/env bash
# Keep 7 daily, 4 weekly and 12 monthly snapshots; delete the rest.
# Snapshots are folders called YYYY-MM-DD below $1. Prints what it would do;
# pass --really to do it.
set -euo pipefail
shopt -s nullglob

die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 2; }

really=0
root=
for arg in "$@"; do
    case $arg in
        --really) really=1 ;;
        -h|--help) sed -n '2,4s/^# //p' "$0"; exit 0 ;;
        -*) die "unknown option $arg" ;;
        *) [[ -z $root ]] || die "only one folder, please"; root=$arg ;;
    esac
done
[[ -n $root ]] || die "usage: ${0##*/} [--really] FOLDER"
[[ -d $root ]] || die "$root is not a folder"

# Newest first. The glob sorts ascending, and ISO dates sort like dates.
snaps=()
for d in "$root"/[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]/; do
    d=${d%/}
    snaps=("${d##*/}" ${snaps[@]+"${snaps[@]}"})
done
(( ${#snaps[@]} )) || die "no snapshots in $root"

declare -A week_seen month_seen
daily=7 weekly=4 monthly=12
for day in "${snaps[@]}"; do
    reason=
    if (( daily > 0 )); then
        daily=$((daily - 1)); reason=daily
    fi
    # Within a week or month the newest snapshot counts, since we meet it first.
    week=$(date -d "$day" +%G-W%V)
    if [[ -z ${week_seen[$week]:-} && $weekly -gt 0 ]]; then
        week_seen[$week]=1; weekly=$((weekly - 1)); reason+=" weekly"
    fi
    month=${day%-*}
    if [[ -z ${month_seen[$month]:-} && $monthly -gt 0 ]]; then
        month_seen[$month]=1; monthly=$((monthly - 1)); reason+=" monthly"
    fi

    if [[ -n $reason ]]; then
        printf 'keep    %s  (%s)\n' "$day" "${reason# }"
    elif (( really )); then
        printf 'delete  %s\n' "$day"
        rm -rf -- "${root:?}/$day"
    else
        printf 'would delete  %s\n' "$day"
    fi
done
