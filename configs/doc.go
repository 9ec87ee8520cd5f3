// Package configs reads what the owner of a guest wrote: TOML in, a resolved
// Guest out. It touches neither kernel nor process, and no file but the spec.
//
// A spec goes through these steps, each in a file of its own:
//
//	parse.go          Load and Parse; the TOML decoder turns text into maps
//	syntax.go         hints for its complaints
//	decode.go         maps into raw structs, which mirror the file: nil is unset
//	hints.go          what to say of an unknown key or a wrong type
//	validate*.go      raw structs into a Guest: defaults, and every rule that
//	                  needs only the file (values.go holds the single values;
//	                  ready.go, size.go, rate.go, mac.go and address.go those with
//	                  a form of their own)
//	report.go         collects the errors on the way
//	position.go       finds the line of each key
//
// A NIC that is attached to a running guest, or changed there, is written in
// words; words.go takes them the same way from decode.go on.
//
// A rule that needs the host (is there such a NIC, such a file) is not here.
// The package that finds it broken reports it with Guest.Errorf, and so in the
// same form: "web1.toml:14: nic[1].parent: …".
//
// # Errors
//
// The user gets everything that is wrong with a spec at once, and each message
// says what is wrong and what to do. A key is complained about once: a report
// drops what follows from an earlier complaint, so a rule need not ask whether
// the values that it compares were valid, but it does ask whether an empty
// value was meant (report.isKnown).
//
// # Why not decode into structs
//
// BurntSushi/toml matches keys in any case, stops at the first wrong type, and
// reports wrong lines inside arrays of tables. Here it only turns the document
// into maps. The raw structs are filled from these by reflection, and lines
// come from a scanner that walks the same text. The scanner judges nothing: it
// stops where the decoder stops. A fuzz test compares the keys that both see.
//
// The scanner has a second task, before the decoder runs: it refuses documents
// that nest more deeply than any spec, since the decoder's time grows with the
// cube of the depth and 32 KiB of "a.a.a…" keep it busy for a quarter of a
// minute.
//
// # To add a key
//
// Add it to a raw struct, to Guest, to a check that takes it from one to the
// other, a NIC's to rawOf (words.go), and with a comment to
// examples/complete.toml; a test fails until it is there. Then add a spec with a
// mistake in it to testdata/bad, run the tests with -update, and read what a
// user would.
package configs
