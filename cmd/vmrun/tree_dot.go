package main

import (
	"fmt"
	"io"
	"strings"

	"vmrun/launcher"
)

// printDot writes parents and guests as a graph in Graphviz's language, an edge
// for each NIC.
func printDot(w io.Writer, parents []launcher.Parent) error {
	var b strings.Builder
	b.WriteString("graph vmrun {\n\trankdir=LR;\n\tnode [shape=box, fontname=\"sans-serif\"];\n\tedge [fontname=\"sans-serif\", fontsize=10];\n")
	guests := map[string]bool{}
	for _, p := range parents {
		dotParent(&b, p, guests)
		for _, v := range p.VLANs {
			dotParent(&b, v, guests)
			fmt.Fprintf(&b, "\t%s -- %s [label=%s];\n", dotQuote("nic "+p.Name), dotQuote("nic "+v.Name), dotQuote(fmt.Sprintf("VLAN %d", v.VLAN)))
		}
	}
	b.WriteString("}\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func dotParent(b *strings.Builder, p launcher.Parent, guests map[string]bool) {
	lines := []string{p.Name, parentState(p)}
	if !p.Gone {
		lines[1] = fmt.Sprintf("MTU %d, %s", p.MTU, lines[1])
	}
	color := "black"
	if parentStyle(p) == bad {
		color = "red"
	}
	fmt.Fprintf(b, "\t%s [label=%s, style=bold, color=%s];\n", dotQuote("nic "+p.Name), dotQuote(append(lines, p.Addresses...)...), color)
	for _, n := range p.NICs {
		if !guests[n.Guest] {
			guests[n.Guest] = true
			fmt.Fprintf(b, "\t%s [label=%s, style=rounded];\n", dotQuote("guest "+n.Guest), dotQuote(n.Guest, string(n.State)))
		}
		label := []string{fmt.Sprintf("%s %s", n.Name, manner(n.NICStatus)), n.MAC}
		one := launcher.Status{NICs: []launcher.NICStatus{n.NICStatus}}
		for _, a := range useful(one.GuestAddresses(), false) {
			label = append(label, a.IP.String())
		}
		if n.Rate != nil {
			label = append(label, fmt.Sprintf("↓ %s ↑ %s", metric(n.Rate.Inbound, "bit/s"), metric(n.Rate.Outbound, "bit/s")))
		}
		color := "black"
		if text := trouble(n.NICStatus); text != "" {
			label, color = append(label, text), "red"
		}
		fmt.Fprintf(b, "\t%s -- %s [label=%s, color=%s];\n", dotQuote("nic "+p.Name), dotQuote("guest "+n.Guest), dotQuote(label...), color)
	}
}

// dotQuote is lines as one quoted string. A backslash begins an escape there,
// and so do ampersands (graphviz.org, escString and HTML entities).
func dotQuote(lines ...string) string {
	for i, line := range lines {
		lines[i] = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "&", "&amp;").Replace(safe(line))
	}
	return `"` + strings.Join(lines, `\n`) + `"`
}
