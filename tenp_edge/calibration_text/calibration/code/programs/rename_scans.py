# quick & dirty: scanner calls everything "Scan 12.pdf", i want 2024-02-17_0012_letter.pdf
# usage: python rename_scans.py ~/Scans          (dry run)
#        python rename_scans.py ~/Scans go
import os, re, sys, time

KINDS = {'i': 'invoice', 'l': 'letter', 't': 'tax', 'x': None}   # x = leave it alone

folder = os.path.expanduser(sys.argv[1])
really = len(sys.argv) > 2 and sys.argv[2] == 'go'

todo = []
for fn in os.listdir(folder):
    m = re.fullmatch(r'Scan(?: (\d+))?\.(pdf|jpe?g)', fn, re.I)
    if not m: continue
    # first scan of the day has no number at all (thanks, Canon)
    num = int(m.group(1) or 0)
    full = os.path.join(folder, fn)
    todo.append((os.path.getmtime(full), num, fn, m.group(2).lower().replace('jpeg', 'jpg')))

for mtime, num, fn, ext in sorted(todo):
    day = time.strftime('%Y-%m-%d', time.localtime(mtime))
    kind = ''
    while kind not in KINDS:
        kind = input(f'{fn} ({day})  i/l/t/x? ').strip().lower()
    if KINDS[kind] is None: continue
    new = f'{day}_{num:04}_{KINDS[kind]}.{ext}'
    # NEVER overwrite. lost two payslips that way
    n = 2
    while os.path.exists(os.path.join(folder, new)):
        new = f'{day}_{num:04}_{KINDS[kind]}-{n}.{ext}'
        n += 1
    print(('' if really else '(dry) ') + fn + ' -> ' + new)
    if really:
        os.rename(os.path.join(folder, fn), os.path.join(folder, new))

print(len(todo), 'scans looked at')
