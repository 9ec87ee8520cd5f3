package main

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"vmrun/configs"
	"vmrun/netsetup/nettest"
)

func TestMain(m *testing.M) {
	testscript.Main(nettest.M{M: m}, map[string]func(){"vmrun": main})
}

// TestScripts runs the command lines in testdata/script. They look at the host
// and change nothing on it: none of their guests can start.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("VMRUN_RUN_DIR", filepath.Join(env.WorkDir, "run"))
			env.Setenv("GORACE", "atexit_sleep_ms=0") // or each vmrun sleeps for a second at its exit
			return nil
		},
		Condition: hostHas,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
			"empty": isEmpty,
			"qcow2": writeQCOW2,
		},
	})
}

// exits runs a program and wants this very exit status: exits 2 vmrun bogus.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS PROGRAM [ARGUMENT...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	switch err := ts.Exec(args[1], args[2:]...); {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// isEmpty wants a directory to be missing, or without anything in it.
func isEmpty(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: empty DIRECTORY")
	}
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		ts.Fatalf("%v", err)
	}
	for _, e := range entries {
		ts.Fatalf("%s holds %s", args[0], e.Name())
	}
}

// writeQCOW2 writes the header of a qcow2 image of so many bytes: qcow2 30G FILE.
func writeQCOW2(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: qcow2 SIZE FILE")
	}
	size, err := configs.ParseSize(args[0])
	ts.Check(err)
	header := make([]byte, 512)
	copy(header, "QFI\xfb\x00\x00\x00\x03")
	binary.BigEndian.PutUint64(header[24:], uint64(size))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), header, 0o644))
}

// hostHas answers a script's conditions: [qemu], for those that ask QEMU, and
// [root]. Where everything must be there, what is not fails the script later.
func hostHas(condition string) (bool, error) {
	if os.Getenv("VMRUN_TEST_REQUIRE") == "1" {
		return true, nil
	}
	switch condition {
	case "qemu":
		_, err := exec.LookPath("qemu-system-x86_64")
		return err == nil, nil
	case "root":
		return os.Geteuid() == 0, nil
	}
	return false, errors.New("no such condition")
}
