package systemdtest

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"vmrun/launcher/guesttest"
)

// WithGuests adds what runs test guests: vmrun, built from the source that is
// there, and the kernel that GuestSpec boots.
func (o Options) WithGuests(t testing.TB) Options {
	t.Helper()
	Require(t)
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		if os.Getenv("VMRUN_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs QEMU: apt-get install qemu-system-x86")
	}
	files := guesttest.Image(t)
	binds := maps.Clone(o.Binds)
	if binds == nil {
		binds = map[string]string{}
	}
	binds["/usr/local/bin"] = filepath.Dir(BuildVmrun(t))
	binds[kernel], binds[initrd] = files.Kernel, files.Initrd
	o.Binds = binds
	return o
}

// BuildVmrun builds the program as it is installed, and returns its path.
func BuildVmrun(t testing.TB) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "vmrun")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "vmrun/cmd/vmrun")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build vmrun: %v\n%s", err, out)
	}
	return bin
}

const (
	kernel = "/srv/kernel"
	initrd = "/srv/initrd"
)

// GuestSpec is the spec of a test guest with these words on its kernel's command
// line: all but its NICs, as a table would be.
func GuestSpec(cmdline string) string {
	return fmt.Sprintf("memory = \"192MiB\"\naccel = \"tcg\"\n[boot]\nkernel = %q\ninitrd = %q\ncmdline = %q\n",
		kernel, initrd, guesttest.Cmdline+" "+cmdline)
}
