package configs

import (
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// NICFromWords resolves and checks one NIC that is not in a file, but in words
// such as "parent=eth1", "bandwidth.inbound=10mbit" and
// "addresses=192.0.2.10,2001:db8::10": the keys of a [[nic]], values without
// quotes, and commas between those of a list. A key without a value
// ("addresses=") has its default. cpus is the guest's number of virtual CPUs.
// The rules are those of a file, and so are the errors: Errors with everything
// that is wrong, whose keys are the words' ("vlan") and which have no file or
// line.
func NICFromWords(cpus int, words []string) (NIC, error) {
	return nicFromWords(cpus, &rawNIC{}, words)
}

// ChangeNIC returns n with the keys in words changed, as NICFromWords reads
// them, and everything else as it is. A list is replaced as a whole, and a key
// without a value goes back to its default, but for the queues, which stay. The
// NIC is checked again as a whole, so an error can be about a key that is not
// in words. n itself is not changed.
func ChangeNIC(n NIC, words []string) (NIC, error) {
	changed, err := nicFromWords(n.Queues, rawOf(n), words)
	if err == nil && n.Kind == KindIPvtap && changed.Kind == KindIPvtap {
		changed.MAC = n.MAC // the parent's, where the launcher has filled it in
	}
	return changed, err
}

// CheckNICs checks the rules between the NICs of one guest, when one has been
// added or changed. The keys of its Errors count nics from 0: "nic[1].parent".
func CheckNICs(nics []NIC) error {
	c := &resolver{report: &report{}}
	c.nicsTogether(nics)
	return c.err()
}

func nicFromWords(cpus int, raw *rawNIC, words []string) (NIC, error) {
	c := &resolver{report: &report{}}
	decodeTable(c.report, "", wordTable(c.report, words), reflect.ValueOf(raw).Elem())
	n := c.nic("", raw, cpus)
	if err := c.err(); err != nil {
		return NIC{}, err
	}
	return n, nil
}

// wordTable returns words as the map that the TOML decoder would make of them,
// with nil for a key that is to have its default.
func wordTable(r *report, words []string) map[string]any {
	table := map[string]any{}
	for _, word := range words {
		if !utf8.ValidString(word) { // TOML is, and JSON has to be
			r.place("", "", quote(word)+" is not UTF-8: write it in the characters of a spec")
			continue
		}
		key, text, ok := strings.Cut(word, "=")
		if !ok || key == "" {
			r.place("", "", quote(word)+" is no setting: write key=value, as mtu=1500")
			continue
		}
		if strings.Count(key, ".") >= maxDepth {
			r.place("", "", quote(word)+" is no setting: no key is that deep")
			continue
		}
		setWord(r, table, strings.Split(key, "."), text)
	}
	return table
}

// setWord puts a value into the table at the path of names.
func setWord(r *report, table map[string]any, names []string, text string) {
	path, of := "", reflect.TypeFor[rawNIC]()
	for i, name := range names {
		path, of = joinKey(path, name), fieldType(of, name)
		old, given := table[name]
		inner, isTable := old.(map[string]any)
		switch last := i == len(names)-1; {
		case given && (last || !isTable):
			r.addf(path, "given twice: keep one")
			return
		case last:
			table[name] = wordValue(of, text)
		case !given:
			inner = map[string]any{}
			table[name] = inner
		}
		table = inner
	}
}

// fieldType returns the type of a key's field in a raw struct, or nil.
func fieldType(t reflect.Type, name string) reflect.Type {
	if t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil || t.Kind() != reflect.Struct {
		return nil
	}
	i, ok := fieldsOf(t)[name]
	if !ok {
		return nil
	}
	return t.Field(i).Type
}

// wordValue reads a value as its field's type wants it. What it cannot read so
// it leaves as text, of which decodeValue complains.
func wordValue(t reflect.Type, text string) any {
	if text == "" {
		return nil
	}
	switch t {
	case reflect.TypeFor[*int64]():
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return n
		}
	case reflect.TypeFor[*bool](), reflect.TypeFor[any]():
		if text == "true" || text == "false" {
			return text == "true"
		}
	case reflect.TypeFor[[]string]():
		var items []any
		for item := range strings.SplitSeq(text, ",") {
			items = append(items, item)
		}
		return items
	}
	return text
}

// rawOf is the way back from a NIC: the keys that make it, without those that
// have their defaults.
func rawOf(n NIC) *rawNIC {
	raw := &rawNIC{
		Parent:       &n.Parent,
		VLAN:         unless(0, int64(n.VLAN)),
		Kind:         word(KindMacvtap, n.Kind),
		MTU:          unless(0, int64(n.MTU)),
		Promisc:      unless(true, n.Promisc),
		Sources:      texts(n.Sources),
		Trust:        word(TrustNone, n.Trust),
		HostAccess:   unless(false, n.HostAccess),
		Addresses:    n.addressWords(),
		Gateways:     texts(n.Gateways),
		Nameservers:  texts(n.Nameservers),
		Model:        word(defaultModel, n.Model),
		Queues:       unless(0, int64(n.Queues)),
		Vhost:        word(VhostAuto, n.Vhost),
		TxQueueLen:   unless(0, int64(n.TxQueueLen)),
		BcQueueLen:   unless(0, int64(n.BcQueueLen)),
		HostOffload:  unless(true, n.HostOffload),
		GuestOffload: unless(true, n.GuestOffload),
		BootIndex:    unless(-1, int64(n.BootIndex)),
	}
	if n.Kind != KindIPvtap {
		raw.MAC = word("", n.MAC.String())
		raw.Mode = word(ModeBridge, n.Mode)
		raw.Multicast = word(MulticastGuest, n.Multicast)
	}
	switch n.Pin {
	case PinMAC:
		raw.Pin = string(PinMAC)
	case PinAll:
		raw.Pin = true
	}
	if n.Bandwidth != (Bandwidth{}) {
		raw.Bandwidth = &rawBandwidth{Inbound: rateWord(n.Bandwidth.Inbound), Outbound: rateWord(n.Bandwidth.Outbound)}
	}
	return raw
}

// unless returns nil for a value that is the default.
func unless[T comparable](unset, v T) *T {
	if v == unset {
		return nil
	}
	return &v
}

// word is unless for a text, of which an empty one has the default too.
func word[T ~string](unset, v T) *string {
	if v == "" {
		return nil
	}
	return unless(string(unset), string(v))
}

func rateWord(r Rate) *rateText { return unless("0bit", rateText(r.String())) }

// texts returns the values of a list as a spec would have them, or nil for none.
func texts[T interface{ String() string }](values []T) []string {
	var list []string
	for _, v := range values {
		list = append(list, v.String())
	}
	return list
}
