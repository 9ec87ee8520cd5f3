package configs

import "testing"

func TestParseRate(t *testing.T) {
	tests := []struct {
		text string
		want Rate
		form string // as String writes it
	}{
		{"0bit", 0, "0bit"},
		{"1bit", 1, "1bit"},
		{"8kbit", 8000, "8kbit"},
		{"100mbit", 100_000_000, "100mbit"},
		{"100MBIT", 100_000_000, "100mbit"},
		{"1.5Gbit", 1_500_000_000, "1500mbit"},
		{".5gbit", 500_000_000, "500mbit"},
		{"0.1gbit", 100_000_000, "100mbit"},
		{"1tbit", 1e12, "1tbit"},
		{"1kibit", 1024, "1024bit"},
		{"1000kibit", 1_024_000, "1024kbit"},
		{"1MiBit", 1 << 20, "1048576bit"},
		{"1gibit", 1 << 30, "1073741824bit"},
		{"1.0004kbit", 1000, "1kbit"},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			got, err := ParseRate(tt.text)
			if err != nil || got != tt.want || got.String() != tt.form {
				t.Errorf("got %d (%s), %v, want %d (%s)", uint64(got), got, err, uint64(tt.want), tt.form)
			}
		})
	}
}

func TestParseRateErrors(t *testing.T) {
	const write = `: write a number and a unit, as "100mbit" or "1.5gbit"`
	const units = `: use the unit bit, kbit, mbit, gbit or tbit`
	tests := []struct{ text, want string }{
		{"", `"" is not a rate` + write},
		{"mbit", `"mbit" is not a rate` + write},
		{"fast", `"fast" is not a rate` + write},
		{"1.2.3mbit", `"1.2.3mbit" is not a rate` + write},
		{"+1mbit", `"+1mbit" is not a rate` + write},
		{"１mbit", `"１mbit" is not a rate` + write},
		{"-1mbit", `"-1mbit" is negative: write a number and a unit, as "100mbit"`},
		{"100", `"100" has no unit: write "100mbit" or "100kbit"`},
		{"1e3", `"1e3" is not a rate` + units},
		{"1e3bit", `"1e3bit" is not a rate` + units},
		{"0x1bit", `"0x1bit" is not a rate` + units},
		{"10furlong", `"10furlong" is not a rate` + units},
		{"10 ", `"10 " is not a rate` + units},
		{"10bps", `"10bps" is not a rate` + units},
		{"100M", `"100M" is not a rate: write "100mbit"`},
		{"100Mbit/s", `"100Mbit/s" is not a rate: write "100mbit"`},
		{"100 mbits", `"100 mbits" is not a rate: write "100mbit"`},
		{"100 mbit", `"100 mbit" is not a rate: write "100mbit"`},
		{"1.5 G", `"1.5 G" is not a rate: write "1.5gbit"`},
		{"100mbps", `"100mbps" may mean bits or bytes: write "100mbit" for bits`},
		{"10MB/s", `"10MB/s" may mean bits or bytes: write "10mbit" for bits`},
		{"9999999999999tbit", `"9999999999999tbit" is too large: use at most 1tbit`},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			if got, err := ParseRate(tt.text); err == nil || err.Error() != tt.want {
				t.Errorf("got %s, %v, want %s", got, err, tt.want)
			}
		})
	}
}

func FuzzParseRate(f *testing.F) {
	for _, text := range []string{"0", "1.5gbit", "100Mbit/s", "8388608tbit", "1 kb", ".mbit", "3MIBIT"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		rate, err := ParseRate(text)
		if err != nil {
			return
		}
		if rate > 1<<53 {
			return // a float64 does not hold each
		}
		if again, err := ParseRate(rate.String()); err != nil || again != rate {
			t.Errorf("%q is %s, which is %s, %v", text, rate, again, err)
		}
	})
}
