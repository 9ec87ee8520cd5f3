package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func (a *app) treeCmd() *cobra.Command {
	var dot bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "tree",
		Short: "Draw the host's NICs with the guests on them",
		Long: `Draw the host's NICs with the guests on them: for each NIC its VLANs, the modes,
the guests' NICs, their addresses, and what they receive and send, measured for
--interval. A "!" marks what needs a look: vmrun status has the rest.

--dot writes the drawing for Graphviz.`,
		Example: `  vmrun tree
  watch -c -n 1 vmrun tree
  vmrun tree --dot | dot -Tsvg > tree.svg`,
		GroupID: "look",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if interval < 0 {
				a.usage = true
				return errors.New("--interval is negative")
			}
			parents, err := launcher.Parents(cmd.Context(), a.runDir, interval)
			switch {
			case a.json:
				return errors.Join(printJSON(parents), err)
			case dot:
				return errors.Join(printDot(os.Stdout, parents), err)
			case len(parents) == 0 && err == nil:
				warn("no guest with a NIC runs: vmrun ps --all lists all guests")
			}
			return errors.Join(printTree(os.Stdout, parents, penFor(os.Stdout)), err)
		},
	}
	cmd.Flags().BoolVar(&dot, "dot", false, "write it for Graphviz")
	cmd.Flags().DurationVar(&interval, "interval", 500*time.Millisecond, "how long the traffic is measured; 0 does not")
	a.jsonFlag(cmd)
	cmd.MarkFlagsMutuallyExclusive("dot", "json")
	return cmd
}

// pen is what a tree is drawn with.
type pen struct {
	branch, last, trunk, gap string
	in, out                  string // what comes to a guest, and what leaves it
	color                    bool
}

var (
	unicodePen = pen{"├─ ", "└─ ", "│  ", "   ", "↓ ", "↑ ", false}
	asciiPen   = pen{"|- ", "`- ", "|  ", "   ", "in ", "out ", false}
)

// penFor is the one for a file: a terminal has colours, unless its owner has
// said no (no-color.org), and one that knows Unicode has lines.
func penFor(f *os.File) pen {
	p := asciiPen
	if !isTerminal(f) {
		return p
	}
	if isUTF8() {
		p = unicodePen
	}
	p.color = os.Getenv("NO_COLOR") == ""
	return p
}

// isUTF8 reports whether the user's locale has the characters of Unicode; the
// first of the variables that is set decides (locale(7)).
func isUTF8() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if value := strings.ToLower(os.Getenv(name)); value != "" {
			return strings.Contains(value, "utf-8") || strings.Contains(value, "utf8")
		}
	}
	return false
}

// style is how a cell is shown where there are colours (ECMA-48, SGR).
type style string

const (
	plain style = ""
	bold  style = "1"
	faint style = "2"
	good  style = "32"
	bad   style = "1;31"
)

type cell struct {
	text  string
	style style
}

// row is a line of the tree: the lines that lead to it, and its cells, which
// stand in columns when there are several.
type row struct {
	lead  string
	cells []cell
}

// node is a part of the tree that is drawn below another.
type node struct {
	cells []cell
	below []node
}

func printTree(w io.Writer, parents []launcher.Parent, p pen) error {
	var rows []row
	for i, parent := range parents {
		if i > 0 {
			rows = append(rows, row{})
		}
		top := parentNode(parent, p)
		rows = append(rows, row{cells: top.cells})
		rows = append(rows, p.draw("", top.below)...)
	}
	return p.write(w, rows)
}

// draw lays out nodes below a line that begins with lead.
func (p pen) draw(lead string, nodes []node) []row {
	var rows []row
	for i, n := range nodes {
		arm, further := p.branch, p.trunk
		if i == len(nodes)-1 {
			arm, further = p.last, p.gap
		}
		rows = append(rows, row{lead + arm, n.cells})
		rows = append(rows, p.draw(lead+further, n.below)...)
	}
	return rows
}

// write writes rows; all cells of one column are as wide as the widest.
func (p pen) write(w io.Writer, rows []row) error {
	var widths []int
	for _, r := range rows {
		for i := range r.cells {
			r.cells[i].text = safe(r.cells[i].text)
		}
		if len(r.cells) < 2 {
			continue
		}
		for i := range r.cells {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], r.width(i))
		}
	}
	for _, r := range rows {
		var b strings.Builder
		b.WriteString(r.lead)
		for i, c := range r.cells {
			b.WriteString(p.paint(c))
			if i < len(r.cells)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-r.width(i)+2))
			}
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(b.String(), " ")); err != nil {
			return err
		}
	}
	return nil
}

func (r row) width(i int) int {
	n := utf8.RuneCountInString(r.cells[i].text)
	if i == 0 {
		n += utf8.RuneCountInString(r.lead)
	}
	return n
}

func (p pen) paint(c cell) string {
	if !p.color || c.style == plain || c.text == "" {
		return c.text
	}
	return "\x1b[" + string(c.style) + "m" + c.text + "\x1b[0m"
}

// parentNode is a parent with all that is on it.
func parentNode(parent launcher.Parent, p pen) node {
	top := node{cells: []cell{{parentWords(parent), parentStyle(parent)}}}
	for _, l := range parent.Links {
		top.below = append(top.below, node{cells: []cell{{fmt.Sprintf("%s %s", l.Name, l.MAC), faint}, {"(host)", faint}, {string(l.Mode), faint}}})
	}
	for rest := parent.NICs; len(rest) > 0; {
		mode := manner(rest[0].NICStatus)
		end := slices.IndexFunc(rest, func(n launcher.PlacedNIC) bool { return manner(n.NICStatus) != mode })
		if end < 0 {
			end = len(rest)
		}
		group := node{cells: []cell{{mode, plain}}}
		for _, n := range rest[:end] {
			group.below = append(group.below, node{cells: nicCells(n, p)})
		}
		top.below = append(top.below, group)
		rest = rest[end:]
	}
	for _, v := range parent.VLANs {
		top.below = append(top.below, parentNode(v, p))
	}
	return top
}

// parentWords is a parent in a line.
func parentWords(p launcher.Parent) string {
	words := []string{p.Name}
	if p.VLAN != 0 {
		words[0] = fmt.Sprintf("VLAN %d (%s)", p.VLAN, p.Name)
	}
	if !p.Gone {
		words = append(words, fmt.Sprintf("MTU %d", p.MTU))
	}
	words = append(words, parentState(p))
	if p.VLAN == 0 {
		words = append(words, plural(p.Guests(), "guest"))
	}
	if len(p.Addresses) > 0 {
		words = append(words, "host "+strings.Join(p.Addresses, ", "))
	}
	return strings.Join(words, "  ")
}

func parentState(p launcher.Parent) string {
	switch {
	case p.Gone:
		return "gone"
	case !p.Up:
		return "down: ip link set " + p.Name + " up"
	case !p.Carrier:
		return "no carrier"
	}
	return "up"
}

func parentStyle(p launcher.Parent) style {
	if p.Gone || !p.Up || !p.Carrier {
		return bad
	}
	return bold
}

// nicCells are a guest's NIC in a line: child, guest, addresses, traffic, and
// what is wrong.
func nicCells(n launcher.PlacedNIC, p pen) []cell {
	one := launcher.Status{NICs: []launcher.NICStatus{n.NICStatus}}
	addresses := strings.ReplaceAll(addressWords(one), " ", ", ")
	guest, guestStyle := n.Guest, bold
	if n.State != launcher.StateRunning {
		guest, guestStyle = fmt.Sprintf("%s (%s)", n.Guest, n.State), faint
	}
	in, out := "", ""
	if r := n.Rate; r != nil {
		in, out = p.in+metric(r.Inbound, "bit/s"), p.out+metric(r.Outbound, "bit/s")
	}
	return []cell{{n.Name + " " + n.MAC, plain}, {guest, guestStyle}, {addresses, plain}, {in, good}, {out, good}, {trouble(n.NICStatus), bad}}
}

// trouble is what of a NIC needs a look, in few words, or "".
func trouble(n launcher.NICStatus) string {
	var words []string
	if n.Link != launcher.LinkUp && n.Link != "" {
		words = append(words, "link: "+string(n.Link))
	}
	if n.Refused != "" {
		words = append(words, "refused something")
	}
	if n.Note != "" {
		words = append(words, "has a note")
	}
	for _, a := range n.Learned {
		if a.Conflict != "" {
			words = append(words, a.IP.String()+" is claimed twice")
		}
	}
	if len(n.Unrouted) > 0 {
		words = append(words, "not reached by the host: "+joinAddrs(n.Unrouted))
	}
	if len(words) == 0 {
		return ""
	}
	return "! " + strings.Join(words, ", ")
}

func joinAddrs(set map[netip.Addr]string) string {
	var words []string
	for _, addr := range slices.SortedFunc(maps.Keys(set), netip.Addr.Compare) {
		words = append(words, addr.String())
	}
	return strings.Join(words, ", ")
}
