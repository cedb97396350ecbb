// Command tailfields follows a log of key=value lines and prints chosen keys as
// aligned columns. It reads standard input, so use it behind tail -F:
//
//	tail -F app.log | tailfields -k time,user,took -w took=8
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"
)

type column struct {
	key   string
	width int
}

// parse splits a line such as  user=ann msg="disk almost full" took=12ms.
// Values may be quoted with Go syntax; a word without = is ignored.
func parse(line string) map[string]string {
	fields := make(map[string]string)
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimLeft(line, " \t") {
		end := strings.IndexAny(line, "= \t")
		if end < 0 {
			break
		}
		key := line[:end]
		if line[end] != '=' {
			line = line[end:]
			continue
		}
		line = line[end+1:]
		if quoted, err := strconv.QuotedPrefix(line); err == nil && quoted[0] == '"' {
			fields[key], _ = strconv.Unquote(quoted)
			line = line[len(quoted):]
			continue
		}
		value, rest, _ := strings.Cut(line, " ")
		fields[key], line = value, rest
	}
	return fields
}

func pad(s string, width int) string {
	n := utf8.RuneCountInString(s)
	if n <= width {
		return s + strings.Repeat(" ", width-n)
	}
	return string([]rune(s)[:width-1]) + "…"
}

func main() {
	keys := flag.String("k", "time,msg", "comma-separated keys to show")
	widths := flag.String("w", "", "widths, e.g. user=10,took=6 (default 14)")
	flag.Parse()

	custom := parse(strings.ReplaceAll(*widths, ",", " "))
	var cols []column
	for _, k := range strings.Split(*keys, ",") {
		c := column{key: k, width: 14}
		if w, ok := custom[k]; ok {
			n, err := strconv.Atoi(w)
			if err != nil || n < 2 {
				fmt.Fprintf(os.Stderr, "tailfields: bad width %q for %s\n", w, k)
				os.Exit(2)
			}
			c.width = n
		}
		cols = append(cols, c)
	}

	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		fields := parse(in.Text())
		var out strings.Builder
		for _, c := range cols {
			out.WriteString(pad(fields[c.key], c.width))
			out.WriteByte(' ')
		}
		fmt.Println(strings.TrimRight(out.String(), " "))
	}
	if err := in.Err(); err != nil {
		fmt.Fprintln(os.Stderr, "tailfields:", err)
		os.Exit(1)
	}
}
