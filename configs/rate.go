package configs

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// The units of tc(8): powers of 1000, and with an "i" of 1024.
const (
	bit   Rate = 1
	kbit       = 1000 * bit
	mbit       = 1000 * kbit
	gbit       = 1000 * mbit
	tbit       = 1000 * gbit
	kibit      = 1024 * bit
	mibit      = 1024 * kibit
	gibit      = 1024 * mibit
)

// Below minRate the largest packet takes longer than a guest waits for it.
const (
	minRate = 8 * kbit
	maxRate = 1 * tbit
)

// rateUnits are the words that ParseRate knows; String writes those before
// kibit, which are in falling order.
var rateUnits = []struct {
	rate Rate
	name string
}{
	{tbit, "tbit"},
	{gbit, "gbit"},
	{mbit, "mbit"},
	{kbit, "kbit"},
	{bit, "bit"},
	{kibit, "kibit"},
	{mibit, "mibit"},
	{gibit, "gibit"},
}

// ParseRate reads a rate as "100mbit" or "1.5Gbit": a number and a unit of
// tc(8)'s, bit, kbit, mbit, gbit or tbit, which are powers of 1000, or kibit,
// mibit or gibit, which are powers of 1024. What is less than a bit is rounded.
// A number without a unit is refused, and so are tc's "bps", which are bytes.
func ParseRate(text string) (Rate, error) {
	number := text[:len(text)-len(strings.TrimLeft(text, "0123456789."))]
	unit := strings.ToLower(text[len(number):])
	if strings.HasPrefix(text, "-") {
		return 0, fmt.Errorf("%s is negative: write a number and a unit, as \"100mbit\"", quote(text))
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is not a rate: write a number and a unit, as \"100mbit\" or \"1.5gbit\"", quote(text))
	}
	if unit == "" {
		return 0, fmt.Errorf("%s has no unit: write %q or %q", quote(text), number+"mbit", number+"kbit")
	}
	for _, u := range rateUnits {
		if u.name != unit {
			continue
		}
		if n *= float64(u.rate); n >= math.MaxInt64 {
			return 0, fmt.Errorf("%s is too large: use at most %s", quote(text), maxRate)
		}
		return Rate(math.Round(n)), nil
	}
	return 0, badRateUnit(text, number, strings.TrimSpace(unit))
}

// badRateUnit explains a unit that is nearly one, or none at all.
func badRateUnit(text, number, unit string) error {
	short := strings.TrimSuffix(strings.TrimSuffix(unit, "/s"), "s") // "mbit/s", "mbits"
	prefix := strings.TrimSuffix(short, "bit")
	if !isPrefix(prefix) {
		prefix = strings.TrimSuffix(strings.TrimSuffix(short, "p"), "b")
	}
	switch {
	case !isPrefix(prefix):
		return fmt.Errorf("%s is not a rate: use the unit bit, kbit, mbit, gbit or tbit", quote(text))
	case strings.HasSuffix(unit, "bps") || strings.HasSuffix(unit, "b/s"):
		// Bytes to tc(8), bits to most others.
		return fmt.Errorf("%s may mean bits or bytes: write %q for bits", quote(text), number+prefix+"bit")
	}
	return fmt.Errorf("%s is not a rate: write %q", quote(text), number+prefix+"bit")
}

func isPrefix(s string) bool {
	return len(s) == 1 && strings.Contains("kmgt", s)
}

// String returns the rate in the largest unit that leaves a whole number, in
// the form that ParseRate reads: "100mbit", "1500kbit", "0bit".
func (r Rate) String() string {
	for _, u := range rateUnits {
		if r >= u.rate && r%u.rate == 0 {
			return strconv.FormatUint(uint64(r/u.rate), 10) + u.name
		}
	}
	return "0bit"
}
