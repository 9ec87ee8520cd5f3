package configs

import (
	"regexp"
	"strings"
)

// consolePrefix comes before the regular expression in ready.when.
const consolePrefix = "console:"

// maxPattern bounds that expression, which every line of the console is held
// against, in bytes.
const maxPattern = 1024

func (c *resolver) ready(raw *rawReady) Ready {
	if raw == nil {
		raw = &rawReady{}
	}
	r := Ready{When: ReadyStarted, Timeout: c.span("ready.timeout", raw.Timeout, defaultReadyTimeout)}
	if raw.When == nil {
		return r
	}
	pattern, isConsole := strings.CutPrefix(*raw.When, consolePrefix)
	switch {
	case isConsole:
		r.When, r.Console = ReadyConsole, pattern
		c.pattern("ready.when", pattern)
	case *raw.When == string(ReadyStarted) || *raw.When == string(ReadyIP):
		r.When = ReadyWhen(*raw.When)
	default:
		c.addf("ready.when", `%s is nothing to be ready with: use "started", "ip", or "console:" and a regular expression, as "console:login: $"`, quote(*raw.When))
	}
	return r
}

// pattern checks a regular expression.
func (c *resolver) pattern(key, text string) {
	switch _, err := regexp.Compile(text); {
	case text == "":
		c.addf(key, `an empty expression fits everything: write what the guest prints, as "console:login: $"`)
	case len(text) > maxPattern:
		c.addf(key, "the expression is %d bytes long: use at most %d", len(text), maxPattern)
	case err != nil:
		c.addf(key, "%s is no regular expression: %s: put \\ before what stands for itself, and the whole between single quotes",
			quote(text), strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
}
