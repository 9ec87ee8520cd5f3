package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// mayImport is the house's order: who may know of whom, of our own packages.
// Imports run one way.
var mayImport = map[string][]string{
	"vmrun/configs":   {},
	"vmrun/qmp":       {},
	"vmrun/netsetup":  {"vmrun/configs"},
	"vmrun/launcher":  {"vmrun/configs", "vmrun/netsetup", "vmrun/qmp"},
	"vmrun/cmd/vmrun": {"vmrun/configs", "vmrun/launcher", "vmrun/qmp"},
}

// support are the trees of packages that tests build on. Only tests, and the
// packages in these trees, import them.
var support = []string{"vmrun/launcher/guesttest", "vmrun/launcher/systemdtest", "vmrun/launcher/bench", "vmrun/netsetup/nettest"}

func isSupport(path string) bool {
	return slices.ContainsFunc(support, func(tree string) bool { return path == tree || strings.HasPrefix(path, tree+"/") })
}

// goPackage is what go list says of a package.
type goPackage struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "vmrun/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.String())
	}
	var list []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

func ours(imports []string) []string {
	var list []string
	for _, i := range imports {
		if strings.HasPrefix(i, "vmrun/") {
			list = append(list, i)
		}
	}
	return list
}

func TestImportsRunOneWay(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range listPackages(t) {
		seen[p.ImportPath] = true
		allowed, known := mayImport[p.ImportPath]
		switch {
		case isSupport(p.ImportPath):
			for _, i := range ours(p.Imports) {
				if i == "vmrun/cmd/vmrun" {
					t.Errorf("%s imports %s", p.ImportPath, i)
				}
			}
		case !known:
			t.Errorf("%s is a room that the house does not have: say in mayImport what it may import", p.ImportPath)
		default:
			for _, i := range ours(p.Imports) {
				if !slices.Contains(allowed, i) {
					t.Errorf("%s imports %s", p.ImportPath, i)
				}
			}
		}
	}
	for path := range mayImport {
		if !seen[path] {
			t.Errorf("%s was not found", path)
		}
	}
}

// Tests may know more than what they test, but no package above it.
func TestTestsImportNothingFromAbove(t *testing.T) {
	for _, p := range listPackages(t) {
		allowed, known := mayImport[p.ImportPath]
		if !known {
			continue
		}
		for _, i := range ours(append(p.TestImports, p.XTestImports...)) {
			fine := i == p.ImportPath || isSupport(i) || slices.Contains(allowed, i)
			// The command's tests make plans, which hold children.
			if fine || (p.ImportPath == "vmrun/cmd/vmrun" && i == "vmrun/netsetup") {
				continue
			}
			t.Errorf("tests of %s import %s", p.ImportPath, i)
		}
	}
}

// Nothing that is shipped has test support, or package testing, inside.
func TestNothingShippedHoldsTests(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "vmrun/cmd/vmrun").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range strings.Fields(string(out)) {
		if isSupport(dep) || dep == "testing" {
			t.Errorf("vmrun is built with %s", dep)
		}
	}
}
