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
// A file of many guests goes the same way, with these steps between:
//
//	fleet.go           LoadFleet; from tables to guests, and errors told once
//	fleet_layers.go    merges raw structs, and remembers where each key is from
//	fleet_expand.go    count: names, placeholders, addresses of a range
//	fleet_together.go  the rules between guests
//	fleet_order.go     what comes after what
//
// differences.go compares two guests, key by key in the words of the file. A NIC
// that is attached to a running guest, or changed there, is written in words;
// words.go takes them the same way from decode.go on. Help, the manual, completions
// and the schema are made of reference.go, which joins the comments of the complete
// examples with the raw structs.
//
// A rule that needs the host (is there such a NIC, such a file) is not here.
// The package that finds it broken reports it with Guest.Errorf, and so in the
// same form: "web1.toml:14: nic[1].parent: …", or for a guest of many, where the
// key is in a template, "lab.toml:5: template.web.nic[0].parent: …".
//
// # Errors
//
// The user gets all that is wrong with a spec at once, and with it what to do. A
// key is complained about once: a report drops what follows from an earlier
// complaint, so a rule need not ask whether the values that it compares were
// valid, but it does ask whether an empty value was meant (report.isKnown).
//
// # Why not decode into structs
//
// BurntSushi/toml matches keys in any case, stops at the first wrong type, and
// reports wrong lines inside arrays of tables. Here it only turns the document
// into maps. The raw structs are filled from these by reflection, and lines
// come from a scanner that walks the same text, judges nothing, and stops where
// the decoder stops; a fuzz test compares the keys that both see. It runs first
// and refuses documents that nest more deeply than any spec: the decoder's time
// grows with the cube of the depth, to 15 s for 32 KiB of "a.a.a…".
//
// # To add a key
//
// Add it to a raw struct, to Guest, to a check that takes it from one to the
// other, a NIC's to rawOf (words.go), with a comment to examples/complete.toml, its
// words and bounds to facts (reference.go), and to TestParse and eachKey; tests fail
// until it is there. Then add a spec with a mistake in it to testdata/bad, run the
// tests with -update, read what a user would, and "make docs".
package configs
