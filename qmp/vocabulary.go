//go:build !goqemu

package qmp

import "fmt"

// Event and Version have the shape of go-qemu's types of the same name. With
// the build tag goqemu they are those types; see vocabulary_goqemu.go.

// Event is an asynchronous message of QEMU's; what its Data holds is in the
// qapi file that defines it. Numbers in Data are json.Number, so that a
// Server relays 64-bit values unharmed; DecodeEvent puts Data into a struct.
type Event struct {
	Event     string         `json:"event"`
	Data      map[string]any `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"` // since 1970, -1 when unknown
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// Version is QEMU's version, as in its greeting (VersionInfo,
// qapi/control.json).
type Version struct {
	Package string `json:"package"`
	QEMU    struct {
		Major int `json:"major"`
		Micro int `json:"micro"`
		Minor int `json:"minor"`
	} `json:"qemu"`
}

// String returns major.minor.micro.
func (v Version) String() string {
	return fmt.Sprintf("%d.%d.%d", v.QEMU.Major, v.QEMU.Minor, v.QEMU.Micro)
}
