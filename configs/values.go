package configs

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Each method here resolves one value: the default when it is unset, a
// complaint when it breaks the rule.

// integer takes a whole number within bounds.
func (c *resolver) integer(key string, n *int64, unset, low, high int64) int64 {
	if n == nil {
		return unset
	}
	if *n < low || *n > high {
		c.addf(key, "%d is out of range: use %d to %d", *n, low, high)
		return unset
	}
	return *n
}

func (c *resolver) bootIndex(key string, n *int64) int {
	if n != nil && *n < 0 {
		c.addf(key, "%d is not a place in the boot order: use 0 for the first, or leave boot_index out", *n)
		return -1
	}
	return int(c.integer(key, n, -1, 0, maxBootIndex))
}

func (c *resolver) size(key string, text *sizeText, unset Size) Size {
	if text == nil {
		return unset
	}
	size, err := ParseSize(string(*text))
	if err != nil {
		c.addf(key, "%v", err)
		return unset
	}
	return size
}

func (c *resolver) rate(key string, text *rateText) Rate {
	if text == nil {
		return 0
	}
	rate, err := ParseRate(string(*text))
	switch {
	case err != nil:
		c.addf(key, "%v", err)
	case rate == 0:
		c.addf(key, "%s lets nothing through: leave %s out for no limit", quote(string(*text)), key[strings.LastIndexByte(key, '.')+1:])
	case rate < minRate || rate > maxRate:
		c.addf(key, "%s is out of range: use %s to %s", quote(string(*text)), minRate, maxRate)
	}
	return rate
}

func (c *resolver) span(key string, text *spanText, unset time.Duration) time.Duration {
	if text == nil {
		return unset
	}
	d, err := parseSpan(string(*text))
	if err != nil {
		c.addf(key, "%v", err)
		return unset
	}
	return d
}

// parseSpan reads a duration in Go's form, which is systemd's with "m" for
// minutes.
func parseSpan(text string) (time.Duration, error) {
	if _, err := strconv.ParseFloat(text, 64); err == nil && text != "0" {
		return 0, fmt.Errorf("%s has no unit: write %q for seconds", quote(text), strings.TrimPrefix(text, "-")+"s")
	}
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s is not a duration: write numbers with the units h, m, s or ms, as \"90s\" or \"1m30s\"", quote(text))
	case d < 0:
		return 0, fmt.Errorf("%s is negative: use \"0s\" to wait not at all", quote(text))
	case d > maxSpan:
		return 0, fmt.Errorf("%s is too long: use at most \"24h\"", quote(text))
	}
	return d, nil
}

// path makes a path absolute.
func (c *resolver) path(key string, text *string) string {
	if text == nil {
		return ""
	}
	if *text == "" {
		c.addf(key, "empty: write a path, or leave the key out")
		return ""
	}
	c.oneLine(key, *text)
	if filepath.IsAbs(*text) {
		return filepath.Clean(*text)
	}
	return filepath.Join(c.dir, *text)
}

// oneLine refuses what cannot be in a QEMU argument, or would be there by
// accident only.
func (c *resolver) oneLine(key, text string) {
	switch i := strings.IndexAny(text, "\x00\n"); {
	case i < 0:
	case text[i] == 0:
		c.addf(key, "holds a NUL character, which no argument of a program can: remove it")
	default:
		c.addf(key, `holds a line break: write it on one line, or end the lines of a """ text with \`)
	}
}

// oneOf takes one of a few words. It returns "" when the key has a complaint, so that no
// rule is applied to a value that was not meant.
func oneOf[T ~string](c *resolver, key, what string, text *string, unset T, words []T) T {
	if c.isKnown(key) {
		return ""
	}
	if text == nil {
		return unset
	}
	for _, w := range words {
		if string(w) == *text {
			return w
		}
	}
	c.addf(key, "%s is not %s: use %s", quote(*text), what, list(words, "or"))
	return ""
}

var (
	arches    = []Arch{ArchX86, ArchARM}
	firmwares = []Firmware{FirmwareBIOS, FirmwareUEFI}
	displays  = []Display{DisplayNone, DisplayVNC}
	accels    = []Accel{AccelAuto, AccelKVM, AccelTCG}
	modes     = []Mode{ModeBridge, ModePrivate, ModeVEPA, ModePassthru, ModeSource}
	kinds     = []Kind{KindMacvtap, KindIPvtap}
	formats   = []DiskFormat{FormatRaw, FormatQCOW2}
	buses     = []Bus{BusVirtio, BusSCSI, BusIDE}
	ios       = []IO{IOThreads, IONative, IOUring}
	caches    = []Cache{CacheWriteback, CacheNone, CacheWritethrough, CacheDirectsync, CacheUnsafe}

	multicasts = []Multicast{MulticastGuest, MulticastAll, MulticastOff}
	trusts     = []Trust{TrustNone, TrustMAC, TrustAll}
	vhosts     = []Vhost{VhostAuto, VhostOn, VhostOff}

	watchdogActions = []WatchdogAction{WatchdogReset, WatchdogPoweroff, WatchdogPause, WatchdogNMI, WatchdogNone}
	hugepages       = []Size{2 * mib, 1 * gib}

	policies = []RestartPolicy{RestartNo, RestartOnFailure, RestartAlways}
)
