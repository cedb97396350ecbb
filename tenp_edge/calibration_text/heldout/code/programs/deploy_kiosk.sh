#!/bin/sh
# Put the current build on every exhibition kiosk that answers. POSIX sh only:
# the build host is a NAS with BusyBox.
set -eu

HOSTS=${KIOSKS:-"kiosk-entrance kiosk-mill kiosk-loom"}
SRC=dist/
failed=

[ -f "${SRC}index.html" ] || { echo "no build in $SRC, run make first" >&2; exit 1; }
stamp=$(date +%Y%m%d-%H%M%S)

for h in $HOSTS; do
    if ! ssh -o ConnectTimeout=4 -o BatchMode=yes "$h" true 2>/dev/null; then
        echo "$h: asleep or unplugged, skipped"
        failed="$failed $h"
        continue
    fi
    # Upload next to the live folder, then switch a symlink: visitors never see
    # half a page. --link-dest makes unchanged videos cost nothing.
    rsync -a --link-dest=../current/ "$SRC" "$h:/srv/kiosk/$stamp/"
    ssh "$h" "cd /srv/kiosk && ln -s $stamp next && mv -T next current &&
              ls -d 20* | sort -r | tail -n +4 | xargs -r rm -rf &&
              { pkill -HUP -x kioskbrowser || true; }"
    echo "$h: $stamp"
done

if [ -n "$failed" ]; then
    echo "not updated:$failed" >&2
    exit 3
fi
