package configs

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// The binary units, which are what QEMU's and systemd's K, M, G and T mean.
const (
	kib Size = 1 << 10
	mib Size = 1 << 20
	gib Size = 1 << 30
	tib Size = 1 << 40
)

// maxSize keeps every size within a file offset.
const maxSize Size = math.MaxInt64

// units is in falling order, for String; the first name is the one it writes.
var units = []struct {
	size  Size
	names []string
}{
	{tib, []string{"TiB", "T"}},
	{gib, []string{"GiB", "G"}},
	{mib, []string{"MiB", "M"}},
	{kib, []string{"KiB", "K"}},
	{1, []string{"B"}},
}

// ParseSize reads a size as "512MiB" or "20G": a whole number and a unit, B,
// KiB, MiB, GiB, TiB or the short forms K, M, G, T, all of them powers of 1024
// as in QEMU and systemd. A number without a unit is refused, except 0.
func ParseSize(text string) (Size, error) {
	digits := text[:len(text)-len(strings.TrimLeft(text, "0123456789"))]
	unit := text[len(digits):]
	if digits == "" {
		return 0, fmt.Errorf("%s is not a size: write a whole number and a unit, as \"512MiB\" or \"20GiB\"", quote(text))
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%s is too large", quote(text))
	}
	if unit == "" {
		if n == 0 {
			return 0, nil
		}
		return 0, fmt.Errorf("%s has no unit: write %q or %q", quote(text), digits+"MiB", digits+"GiB")
	}
	factor, ok := unitSize(unit)
	if !ok {
		return 0, badUnit(text, digits, unit)
	}
	if Size(n) > maxSize/factor {
		return 0, fmt.Errorf("%s is too large", quote(text))
	}
	return Size(n) * factor, nil
}

func unitSize(name string) (Size, bool) {
	for _, u := range units {
		for _, n := range u.names {
			if n == name {
				return u.size, true
			}
		}
	}
	return 0, false
}

// badUnit explains a unit that is nearly one, or none at all.
func badUnit(text, digits, unit string) error {
	if strings.HasPrefix(unit, ".") || strings.HasPrefix(unit, ",") {
		return fmt.Errorf("%s is not a whole number: use a smaller unit, as \"1536MiB\" for one and a half GiB", quote(text))
	}
	if first := strings.TrimSpace(strings.ToUpper(unit)); first != "" && strings.Contains("KMGT", first[:1]) {
		switch first[1:] {
		case "", "B", "IB":
			return fmt.Errorf("%s is not a size: write %q", quote(text), digits+first[:1]+"iB")
		}
	}
	return fmt.Errorf("%s is not a size: use the unit KiB, MiB, GiB or TiB", quote(text))
}

// String returns the size in the largest unit that leaves a whole number, in
// the form that ParseSize reads: "1GiB", "1536MiB", "0B".
func (s Size) String() string {
	for _, u := range units {
		if s >= u.size && s%u.size == 0 {
			return strconv.FormatUint(uint64(s/u.size), 10) + u.names[0]
		}
	}
	return "0B"
}
