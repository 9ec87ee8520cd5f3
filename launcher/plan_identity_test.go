package launcher

import (
	"fmt"
	"testing"

	"github.com/google/uuid"

	"vmrun/configs"
)

const (
	hostA = "0123456789abcdef0123456789abcdef"
	hostB = "fedcba9876543210fedcba9876543210"
)

func guestNamed(name string) *configs.Guest { return &configs.Guest{Name: name} }

// A guest keeps its addresses from version to version of this program: they
// are what DHCP servers and firewalls know it by.
func TestDerivedIdentityNeverChanges(t *testing.T) {
	if got, want := guestMAC(guestNamed("web1"), hostA, 0).String(), "aa:fc:df:69:08:88"; got != want {
		t.Errorf("MAC %s, want %s", got, want)
	}
	if got, want := guestUUID(guestNamed("web1"), hostA).String(), "b5afd954-72d5-8729-8303-74e03fd96ef1"; got != want {
		t.Errorf("UUID %s, want %s", got, want)
	}
	moving := guestNamed("web1")
	moving.UUID = uuid.MustParse("3f1c9d62-7a0e-4b57-9c35-2e8d41f6ab90")
	if got, want := guestMAC(moving, hostA, 0).String(), "76:e0:59:50:80:62"; got != want {
		t.Errorf("MAC of a guest with a uuid %s, want %s", got, want)
	}
}

func TestDerivedMACs(t *testing.T) {
	owner := map[string]string{}
	for _, host := range []string{hostA, hostB, ""} {
		for guest := range 300 {
			for nic := range 8 {
				g := guestNamed(fmt.Sprintf("g%d", guest))
				mac := guestMAC(g, host, nic)
				if err := configs.CheckMAC(mac); err != nil {
					t.Fatal(err)
				}
				if mac[0]&3 != 2 {
					t.Fatalf("%s is not a local unicast address", mac)
				}
				if again := guestMAC(g, host, nic); again.String() != mac.String() {
					t.Fatalf("%s and then %s", mac, again)
				}
				what := fmt.Sprintf("%s/%s/%d", host, g.Name, nic)
				if other, ok := owner[mac.String()]; ok {
					t.Fatalf("%s is that of %s and of %s", mac, other, what)
				}
				owner[mac.String()] = what
			}
		}
	}
}

// The words that are hashed cannot run into each other.
func TestDerivedMACsKeepNameAndIndexApart(t *testing.T) {
	if a, b := guestMAC(guestNamed("web1"), hostA, 11), guestMAC(guestNamed("web11"), hostA, 1); a.String() == b.String() {
		t.Errorf("both %s", a)
	}
}

func TestDerivedMACsFollowTheUUID(t *testing.T) {
	g := guestNamed("web1")
	g.UUID = uuid.MustParse("3f1c9d62-7a0e-4b57-9c35-2e8d41f6ab90")
	here, there := guestMAC(g, hostA, 0), guestMAC(g, hostB, 0)
	if here.String() != there.String() {
		t.Errorf("%s here and %s there", here, there)
	}
	if guestUUID(g, hostA) != g.UUID {
		t.Error("the spec's uuid is not the guest's")
	}
	other := guestNamed("web1")
	other.UUID = uuid.MustParse("3f1c9d62-7a0e-4b57-9c35-2e8d41f6ab91")
	if guestMAC(other, hostA, 0).String() == here.String() {
		t.Error("another uuid gives the same MAC")
	}
}

func TestDerivedUUIDs(t *testing.T) {
	seen := map[uuid.UUID]bool{}
	for _, host := range []string{hostA, hostB} {
		for _, name := range []string{"a", "b", "a.b", "a-b"} {
			id := guestUUID(guestNamed(name), host)
			if id.Version() != 8 || id.Variant() != uuid.RFC4122 {
				t.Errorf("%s: version %d, variant %v", id, id.Version(), id.Variant())
			}
			if seen[id] || id != guestUUID(guestNamed(name), host) {
				t.Errorf("%s is not one guest's alone, or not the same again", id)
			}
			seen[id] = true
		}
	}
}
