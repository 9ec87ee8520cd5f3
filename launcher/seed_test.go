package launcher

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vmrun/configs"
)

const testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw me"

// seedOf plans a guest and returns its seed as texts.
func seedOf(t *testing.T, facts seedFacts, lines ...string) map[string]string {
	t.Helper()
	host := testFacts()
	host.Seed = facts
	p, err := NewPlan(parseSpec(t, append([]string{`boot.kernel = "k"`}, lines...)...), host, PlanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for name, data := range p.seed {
		files[name] = string(data)
	}
	return files
}

func decodeJSON(t *testing.T, text, first string) (v map[string]any) {
	t.Helper()
	body, ok := strings.CutPrefix(text, first)
	if err := json.Unmarshal([]byte(body), &v); err != nil || !ok {
		t.Fatalf("%v in %q", err, text)
	}
	return v
}

func TestSeed(t *testing.T) {
	if seed := seedOf(t, seedFacts{}); len(seed) != 0 {
		t.Errorf("without [cloud_init]: %v", seed)
	}
	seed := seedOf(t, seedFacts{Keys: []string{testKey}}, "cloud_init = {}", nicOn("eth0", "bridge", `mac = "02:00:00:00:00:01"`))
	if diff := cmp.Diff(map[string]any{"manage_etc_hosts": "localhost", "users": []any{"default"}, "ssh_authorized_keys": []any{testKey}}, decodeJSON(t, seed["user-data"], "#cloud-config\n")); diff != "" {
		t.Errorf("user-data (-want +got):\n%s", diff)
	}
	meta := decodeJSON(t, seed["meta-data"], "")
	if meta["local-hostname"] != "web1" || !strings.HasPrefix(meta["instance-id"].(string), guestUUID(parseSpec(t, disk), testFacts().MachineID).String()+"-") {
		t.Errorf("meta-data: %v", meta)
	}
	want := `{"version": 2, "ethernets": {"net0": {"match": {"macaddress": "02:00:00:00:00:01"}, "dhcp4": true}}}`
	if diff := cmp.Diff(decodeJSON(t, want, ""), decodeJSON(t, seed["network-config"], "")); diff != "" {
		t.Errorf("network-config (-want +got):\n%s", diff)
	}

	seed = seedOf(t, seedFacts{Keys: []string{testKey}}, `cloud_init.hostname = "a.b"`, `cloud_init.users = ["alice"]`, `cloud_init.packages = ["nginx"]`)
	if _, ok := seed["network-config"]; ok {
		t.Errorf("without a NIC: %q", seed["network-config"])
	}
	user := map[string]any{"name": "alice", "shell": "/bin/bash", "sudo": "ALL=(ALL) NOPASSWD:ALL", "lock_passwd": true, "ssh_authorized_keys": []any{testKey}}
	if diff := cmp.Diff(map[string]any{"manage_etc_hosts": "localhost", "users": []any{user}, "packages": []any{"nginx"}, "package_update": true}, decodeJSON(t, seed["user-data"], "#cloud-config\n")); diff != "" {
		t.Errorf("user-data (-want +got):\n%s", diff)
	}
	seed = seedOf(t, seedFacts{}, `cloud_init = {users = [], ssh_keys = []}`)
	if diff := cmp.Diff(map[string]any{"manage_etc_hosts": "localhost", "users": []any{}}, decodeJSON(t, seed["user-data"], "#cloud-config\n")); diff != "" {
		t.Errorf("user-data for nobody (-want +got):\n%s", diff)
	}
}

func TestSeedNetwork(t *testing.T) {
	seed := seedOf(t, seedFacts{}, "cloud_init = {}",
		nicOn("eth0", "bridge", `mac = "02:00:00:00:00:01"`, `addresses = ["192.0.2.10/24", "2001:db8::10/64", "192.0.2.11"]`,
			`gateways = ["192.0.2.1", "fe80::1"]`, `nameservers = ["192.0.2.53"]`),
		nicOn("eth1", "bridge", `mac = "02:00:00:00:00:02"`, `addresses = ["198.51.100.10"]`))
	want := `{"version": 2, "ethernets": {
		"net0": {"match": {"macaddress": "02:00:00:00:00:01"}, "addresses": ["192.0.2.10/24", "2001:db8::10/64"],
			"routes": [{"to": "0.0.0.0/0", "via": "192.0.2.1"}, {"to": "::/0", "via": "fe80::1"}], "nameservers": {"addresses": ["192.0.2.53"]}},
		"net1": {"match": {"macaddress": "02:00:00:00:00:02"}, "dhcp4": true}}}`
	if diff := cmp.Diff(decodeJSON(t, want, ""), decodeJSON(t, seed["network-config"], "")); diff != "" {
		t.Errorf("network-config (-want +got):\n%s", diff)
	}
	seed = seedOf(t, seedFacts{Network: []byte("version: 1\n")}, `cloud_init.network_config = "net.yaml"`, nicOn("eth0", "bridge"))
	if seed["network-config"] != "version: 1\n" {
		t.Errorf("the owner's own: %q", seed["network-config"])
	}
}

// A changed seed is a new instance, and so is another guest with the same; nothing else is.
func TestSeedInstance(t *testing.T) {
	id := func(facts seedFacts, lines ...string) any {
		return decodeJSON(t, seedOf(t, facts, lines...)["meta-data"], "")["instance-id"]
	}
	facts := seedFacts{Keys: []string{testKey}, UserData: []byte("#cloud-config\n{}")}
	spec := []string{`cloud_init.user_data = "u"`, nicOn("eth0", "bridge")}
	first := id(facts, spec...)
	if again := id(facts, spec...); again != first {
		t.Errorf("%v, and then %v", first, again)
	}
	if same := id(facts, append([]string{"cpus = 2"}, spec...)...); same != first {
		t.Errorf("with more CPUs %v, before %v", same, first)
	}
	seen := map[any]string{first: "the first"}
	for name, other := range map[string]any{
		"another key":       id(seedFacts{UserData: facts.UserData}, spec...),
		"another user-data": id(seedFacts{Keys: facts.Keys, UserData: []byte("#cloud-config\n{ }")}, spec...),
		"another address":   id(facts, append(spec, `addresses = ["192.0.2.1/24"]`)...),
		"another hostname":  id(facts, append([]string{`cloud_init.hostname = "b"`}, spec...)...),
		"another uuid":      "",
	} {
		if name == "another uuid" {
			g := parseSpec(t, append([]string{`uuid = "3f1c9d62-7a0e-4b57-9c35-2e8d41f6ab90"`, `boot.kernel = "k"`}, spec...)...)
			host := testFacts()
			host.Seed = facts
			p, err := NewPlan(g, host, PlanOptions{})
			if err != nil {
				t.Fatal(err)
			}
			other = decodeJSON(t, string(p.seed["meta-data"]), "")["instance-id"]
		}
		if was, ok := seen[other]; ok {
			t.Errorf("%s is the same instance as %s: %v", name, was, other)
		}
		seen[other] = name
	}
}

// parts takes an archive of user-data apart, as cloud-init does.
func parts(t *testing.T, text string) (kinds, bodies []string) {
	t.Helper()
	m, err := mail.ReadMessage(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	for r := multipart.NewReader(m.Body, params["boundary"]); ; {
		p, err := r.NextRawPart()
		if err == io.EOF {
			return kinds, bodies
		}
		if err != nil {
			t.Fatalf("%v in %q", err, text)
		}
		body, err := io.ReadAll(p)
		if err == nil && p.Header.Get("Content-Transfer-Encoding") == "base64" {
			body, err = base64.StdEncoding.DecodeString(strings.ReplaceAll(string(body), "\n", ""))
		}
		if err != nil {
			t.Fatal(err)
		}
		kind, _, _ := mime.ParseMediaType(p.Header.Get("Content-Type"))
		kinds, bodies = append(kinds, kind), append(bodies, string(body))
	}
}

func TestSeedUserData(t *testing.T) {
	archive := "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"x\"\n\n--x\nContent-Type: text/x-shellscript\n\n#!/bin/sh\n--x--\n"
	for _, tt := range []struct{ name, data, kind string }{
		{"cloud-config", "#cloud-config\nusers: [ä]\n" + strings.Repeat("# long\n", 100), "text/cloud-config"},
		{"a script", "#!/bin/sh\necho hello\n", "text/x-shellscript"},
		{"a template", "## template: jinja\n#cloud-config\n", "text/jinja2"},
		{"compressed", "\x1f\x8b\x08\x00", "application/gzip"},
		{"an archive", archive, "multipart/mixed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seed := seedOf(t, seedFacts{Keys: []string{testKey}, UserData: []byte(tt.data)}, `cloud_init.user_data = "u"`)
			kinds, bodies := parts(t, seed["user-data"])
			if diff := cmp.Diff([]string{"text/cloud-config", tt.kind}, kinds); diff != "" {
				t.Fatalf("parts (-want +got):\n%s", diff)
			}
			if !strings.HasPrefix(bodies[0], "#cloud-config\n") || !strings.Contains(bodies[0], testKey) {
				t.Errorf("the first: %q", bodies[0])
			}
			if tt.kind != "multipart/mixed" && bodies[1] != tt.data || !strings.HasSuffix(strings.TrimSpace(tt.data), strings.TrimSpace(bodies[1])) {
				t.Errorf("the second: %q", bodies[1])
			}
		})
	}
	host := testFacts()
	host.Seed = seedFacts{UserData: []byte("users: [me]\n")}
	_, err := NewPlan(parseSpec(t, disk, "[cloud_init]", `user_data = "u"`), host, PlanOptions{})
	if want := `/srv/web1.toml:4: cloud_init.user_data: /srv/u: cloud-init would not know what it is: begin it with "#cloud-config", or "#!" for a script`; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// isoFiles reads a seed's image with a library, and where the host can, with its own
// programs.
func isoFiles(t *testing.T, image *os.File) map[string]string {
	t.Helper()
	fs, err := iso9660.Read(file.New(image, true), 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if label := strings.TrimRight(fs.Label(), " \x00"); label != seedLabel {
		t.Errorf("label %q", label)
	}
	infos, err := fs.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, info := range infos {
		f, err := fs.Open(info.Name())
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		files[info.Name()] = string(data)
	}
	return files
}

func TestSeedImage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a file system in memory: sudo make test")
	}
	want := map[string]string{"meta-data": "{}", "network-config": "version: 2\n", "user-data": "#cloud-config\n" + strings.Repeat("x", 5000)}
	files := map[string][]byte{}
	for name, text := range want {
		files[name] = []byte(text)
	}
	image, err := isoImage(seedLabel, files)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if diff := cmp.Diff(want, isoFiles(t, image)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if _, err := image.WriteAt([]byte("x"), 0); err == nil {
		t.Error("the image can be written to")
	}
	if seals, err := unix.FcntlInt(image.Fd(), unix.F_GET_SEALS, 0); err != nil || seals&unix.F_SEAL_WRITE == 0 {
		t.Errorf("seals %#x, %v", seals, err)
	}
	if blkid, err := exec.LookPath("blkid"); err == nil { // as cloud-init finds it
		cmd := exec.Command(blkid, "-p", "-o", "export", "/dev/fd/3")
		cmd.ExtraFiles = []*os.File{image}
		out, err := cmd.Output()
		if !bytes.Contains(out, []byte("LABEL=cidata\n")) || !bytes.Contains(out, []byte("TYPE=iso9660\n")) {
			t.Errorf("blkid: %v: %s", err, out)
		}
	}
}

func TestReadSeed(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	other := strings.Replace(testKey, "MDAw", "MTEx", 1)
	write("keys", "# mine\n\n"+testKey+"\n"+other+"\n")
	write("none", "# none\n")
	write("private", "-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n")
	write("large", strings.Repeat("x", configs.MaxCredentials))
	write("small", "x\n")
	read := func(lines ...string) seedFacts {
		g, err := configs.Parse(filepath.Join(dir, "web1.toml"), []byte("boot.kernel = \"k\"\n"+strings.Join(lines, "\n")))
		if err != nil {
			t.Fatal(err)
		}
		return readSeed(g)
	}
	f := read(fmt.Sprintf("cloud_init.ssh_keys = [%q, \"keys\"]", other), `cloud_init.user_data = "small"`)
	if diff := cmp.Diff([]string{other, testKey}, f.Keys); diff != "" || len(f.Problems) > 0 || string(f.UserData) != "x\n" {
		t.Errorf("%+v\n%s", f, diff)
	}
	f = read(`cloud_init = {ssh_keys = ["private", "none", "gone", "/dev/null"], user_data = "gone", network_config = "/"}`)
	for key, want := range map[string]string{
		"cloud_init.ssh_keys[0]":    dir + "/private:1: not a public key",
		"cloud_init.ssh_keys[1]":    dir + "/none holds no public key",
		"cloud_init.ssh_keys[2]":    dir + "/gone does not exist",
		"cloud_init.ssh_keys[3]":    "not a regular file",
		"cloud_init.user_data":      dir + "/gone does not exist",
		"cloud_init.network_config": "not a regular file",
	} {
		if err := f.Problems[key]; err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %q", key, err, want)
		}
	}
	f = read("[[credential]]\nname = \"a\"\nfile = \"small\"\n[[credential]]\nname = \"b\"\nvalue = \"v\"\n[[credential]]\nname = \"c\"\nfile = \"large\"")
	if len(f.Problems) != 1 || !strings.Contains(fmt.Sprint(f.Problems["credential[2].file"]), "is larger than the 32765 bytes that there is room for") {
		t.Errorf("%v", f.Problems)
	}
	if len(f.Credentials) != 3 || string(f.Credentials[0]) != "x\n" || string(f.Credentials[1]) != "v" {
		t.Errorf("%q", f.Credentials[:2])
	}
}

// A seed whose owner has no key, so that nobody could log in, is warned of.
func TestSeedWarnings(t *testing.T) {
	for _, tt := range []struct {
		spec  string
		facts seedFacts
		want  bool
	}{
		{"cloud_init = {}", seedFacts{Looked: "/home/me/.ssh"}, true},
		{"cloud_init = {}", seedFacts{Looked: "/home/me/.ssh", Keys: []string{testKey}}, false},
		{"cloud_init.ssh_keys = []", seedFacts{}, false},
		{"cloud_init.users = []", seedFacts{}, false},
		{"", seedFacts{}, false},
	} {
		if got := seedWarnings(parseSpec(t, tt.spec, disk), tt.facts); (len(got) == 1 && strings.Contains(got[0], "no public key in /home/me/.ssh")) != tt.want {
			t.Errorf("%s: %v", tt.spec, got)
		}
	}
}
