package configs

import (
	"regexp"
	"sync"
)

// lazyPattern compiles a regular expression when it is first used. Every command of vmrun
// has this package, and few use its expressions.
func lazyPattern(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}
