package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmrun/launcher"
	"vmrun/launcher/guesttest"
)

const aliceKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw alice"

// A guest finds its seed and its credentials, and nobody else does: not in a command
// line, an environment or a file.
func TestSeedInGuest(t *testing.T) {
	h := newHost(t)
	files := guesttest.Options{Modules: []string{"isofs"}}.Image(t)
	dir := t.TempDir()
	const secret, hidden = "s3cr3t-of-the-seed", "s3cr3t-of-systemd\n\x00"
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("user-data", "#cloud-config\npassword: "+secret+"\n")
	write("hash", hidden)
	spec := write("web1.toml", fmt.Sprintf(`memory = "192MiB"
accel = "tcg"
[boot]
kernel = %q
initrd = %q
cmdline = %q
[cloud_init]
ssh_keys = [%q]
user_data = "user-data"
[[credential]]
name = "passwd.hashed-password.root"
file = "hash"
[[credential]]
name = "plain"
value = "text"
[[nic]]
parent = "lab0"
addresses = ["192.0.2.11/24"]
gateways = ["192.0.2.1"]
`, files.Kernel, files.Initrd, guesttest.Cmdline, aliceKey))

	h.cleanup("web1")
	h.vmrun(0, `^web1: running: lab0 bridge `, "start", spec)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	con, err := guesttest.Dial(ctx, launcher.ConsoleSocket(h.run, "web1"))
	if err != nil {
		t.Fatal(err)
	}
	defer con.Close()
	if _, err := con.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	_, lines, err := con.Run(ctx, "files vda iso9660")
	if err != nil {
		t.Fatal(err)
	}
	seed := map[string]string{}
	for _, line := range lines {
		words := strings.Fields(line)
		text, err := base64.StdEncoding.DecodeString(words[2])
		if err != nil || words[1] != "600" {
			t.Errorf("%s: %v", line, err)
		}
		seed[words[0]] = string(text)
	}
	var meta map[string]string
	if err := json.Unmarshal([]byte(seed["meta-data"]), &meta); err != nil || meta["local-hostname"] != "web1" || meta["instance-id"] == "" {
		t.Errorf("meta-data: %v: %q", err, seed["meta-data"])
	}
	if text := seed["network-config"]; !strings.Contains(text, `"192.0.2.11/24"`) || !strings.Contains(text, `"via": "192.0.2.1"`) {
		t.Errorf("network-config: %s", text)
	}
	if text := seed["user-data"]; !strings.HasPrefix(text, "Content-Type: multipart/mixed") {
		t.Errorf("user-data: %s", text)
	}
	_, oem, err := con.Run(ctx, "oem")
	slices.Sort(oem)
	want := []string{
		"io.systemd.credential.binary:passwd.hashed-password.root=" + base64.StdEncoding.EncodeToString([]byte(hidden)),
		"io.systemd.credential.binary:plain=" + base64.StdEncoding.EncodeToString([]byte("text")),
	}
	if err != nil || !slices.Equal(oem, want) {
		t.Errorf("SMBIOS strings: %q, %v; want %q", oem, err, want)
	}
	for _, words := range []string{secret, "s3cr3t-of-systemd"} {
		forms := []string{words, base64.StdEncoding.EncodeToString([]byte(words))[:20]}
		for _, place := range places(t, h.run) {
			if data, _ := os.ReadFile(place); slices.ContainsFunc(forms, func(form string) bool { return strings.Contains(string(data), form) }) {
				t.Errorf("%s holds a secret", place)
			}
		}
	}
	h.vmrun(0, `^web1: stopped`, "stop", "web1")
}

// places are the files that others could find a guest's secrets in. What a guest prints
// is its own.
func places(t *testing.T, run string) []string {
	t.Helper()
	var list []string
	for _, pattern := range []string{"/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ", filepath.Join(run, "*", "[^c]*.log"), filepath.Join(run, "*", "state")} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, found...)
	}
	return list
}
