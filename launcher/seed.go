package launcher

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/uuid"

	"vmrun/configs"
)

// seedFacts is what was read of the host for a guest's seed and its credentials.
type seedFacts struct {
	Keys        []string // lines of authorized_keys, none twice
	Looked      string   // the directory of the owner's keys, where they are wanted
	UserData    []byte
	Network     []byte
	Credentials [][]byte         // by number
	Problems    map[string]error // by key: "cloud_init.user_data"
}

// The names of the files in a seed, and the label of its file system (cloud-init,
// NoCloud).
const (
	seedLabel    = "cidata"
	seedMeta     = "meta-data"
	seedUser     = "user-data"
	seedNetwork  = "network-config"
	seedPartMark = "vmrun-part-of-user-data" // between the parts; in Base64 there is no "-"
)

// newSeed writes the files of a guest's seed, by name, or nil for a guest without one.
func newSeed(p *Plan, facts seedFacts) (map[string][]byte, error) {
	ci := p.Guest.CloudInit
	if ci.Hostname == "" {
		return nil, nil
	}
	user, err := userData(ci, facts)
	if err != nil {
		return nil, p.Guest.Errorf("cloud_init.user_data", "%s: %v", ci.UserData, err)
	}
	files := map[string][]byte{seedUser: user}
	switch {
	case ci.NetworkConfig != "":
		files[seedNetwork] = facts.Network
	case len(p.Children) > 0:
		files[seedNetwork] = toYAML("", networkConfig(p))
	}
	files[seedMeta] = toYAML("", map[string]string{
		"instance-id":    instanceID(p.UUID, ci.Hostname, files),
		"local-hostname": ci.Hostname,
	})
	return files, nil
}

// instanceID is another for each guest, and for each content of its seed: then
// cloud-init does anew what it does once for an instance.
func instanceID(id uuid.UUID, hostname string, files map[string][]byte) string {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(hostname), files[seedUser], files[seedNetwork]} {
		fmt.Fprintf(h, "%d\n", len(part))
		h.Write(part)
	}
	return fmt.Sprintf("%s-%x", id, h.Sum(nil)[:6])
}

// toYAML writes a value as JSON, which is YAML, behind a first line that says what it is.
func toYAML(first string, v any) []byte {
	var b bytes.Buffer
	b.WriteString(first)
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		panic(err) // texts, lists and maps of such
	}
	return b.Bytes()
}

// networkConfig is the guest's network in the format that netplan has too
// (cloud-init, network-config version 2). A NIC is found by its MAC, and keeps the name
// that the guest gives it.
func networkConfig(p *Plan) map[string]any {
	ethernets := map[string]any{}
	for _, c := range p.Children {
		nic := map[string]any{"match": map[string]string{"macaddress": c.MAC.String()}}
		if len(c.Prefixes) == 0 {
			nic["dhcp4"] = true
		} else {
			nic["addresses"] = c.Prefixes
		}
		var routes []map[string]string
		for _, gw := range c.Gateways {
			routes = append(routes, map[string]string{"to": anywhere(gw), "via": gw.String()})
		}
		if routes != nil {
			nic["routes"] = routes
		}
		if len(c.Nameservers) > 0 {
			nic["nameservers"] = map[string]any{"addresses": c.Nameservers}
		}
		ethernets[c.Name] = nic
	}
	return map[string]any{"version": 2, "ethernets": ethernets}
}

// anywhere is the destination of a default route. The word "default" is newer than
// many a guest.
func anywhere(gateway netip.Addr) string {
	if gateway.Is4() {
		return "0.0.0.0/0"
	}
	return "::/0"
}

// userData is what the keys of [cloud_init] say and then the owner's own file, as
// the parts of one archive. Of two parts of cloud-config the later one's keys hold
// (cloud-init, "Merging user-data sections").
func userData(ci configs.CloudInit, facts seedFacts) ([]byte, error) {
	config := cloudConfig(ci, facts.Keys)
	if ci.UserData == "" {
		return config, nil
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=%q\nMIME-Version: 1.0\n", seedPartMark)
	writePart(&b, "text/cloud-config", config)
	kind, err := userDataType(facts.UserData)
	if err != nil {
		return nil, err
	}
	if kind == "" { // an archive already, headers and all
		fmt.Fprintf(&b, "\n--%s\n%s\n", seedPartMark, facts.UserData)
	} else {
		writePart(&b, kind, facts.UserData)
	}
	fmt.Fprintf(&b, "\n--%s--\n", seedPartMark)
	return b.Bytes(), nil
}

func writePart(b *bytes.Buffer, kind string, data []byte) {
	fmt.Fprintf(b, "\n--%s\nContent-Type: %s; charset=\"utf-8\"\nContent-Transfer-Encoding: base64\nMIME-Version: 1.0\n\n", seedPartMark, kind)
	for line := range slices.Chunk([]byte(base64.StdEncoding.EncodeToString(data)), 76) {
		b.Write(line)
		b.WriteByte('\n')
	}
}

// cloudConfig is what the keys of [cloud_init] say.
func cloudConfig(ci configs.CloudInit, keys []string) []byte {
	config := map[string]any{"manage_etc_hosts": "localhost"} // without it sudo waits for a name server to know the guest
	var users []any
	for _, name := range ci.Users {
		if name == configs.UserDefault {
			users = append(users, name)
			continue
		}
		user := map[string]any{"name": name, "shell": "/bin/bash", "sudo": "ALL=(ALL) NOPASSWD:ALL", "lock_passwd": true}
		if len(keys) > 0 {
			user["ssh_authorized_keys"] = keys
		}
		users = append(users, user)
	}
	config["users"] = append([]any{}, users...) // none is not the default
	if slices.Contains(ci.Users, configs.UserDefault) && len(keys) > 0 {
		config["ssh_authorized_keys"] = keys // the default user's
	}
	if len(ci.Packages) > 0 {
		config["packages"], config["package_update"] = ci.Packages, true
	}
	return toYAML("#cloud-config\n", config)
}

// userDataTypes are told by how user-data begins (cloud-init, user_data.py,
// INCLUSION_TYPES_MAP).
var userDataTypes = []struct{ prefix, kind string }{
	{"#cloud-config-archive", "text/cloud-config-archive"},
	{"#cloud-config-jsonp", "text/cloud-config-jsonp"},
	{"#cloud-config", "text/cloud-config"},
	{"#cloud-boothook", "text/cloud-boothook"},
	{"#include-once", "text/x-include-once-url"},
	{"#include", "text/x-include-url"},
	{"#part-handler", "text/part-handler"},
	{"## template: jinja", "text/jinja2"},
	{"#!", "text/x-shellscript"},
	{"\x1f\x8b", "application/gzip"},
}

// userDataType is what user-data is, "" for an archive with headers of its own.
func userDataType(data []byte) (string, error) {
	for _, t := range userDataTypes {
		if bytes.HasPrefix(data, []byte(t.prefix)) {
			return t.kind, nil
		}
	}
	for _, header := range []string{"content-type:", "mime-version:"} {
		if len(data) >= len(header) && strings.EqualFold(string(data[:len(header)]), header) {
			return "", nil
		}
	}
	return "", errors.New(`cloud-init would not know what it is: begin it with "#cloud-config", or "#!" for a script`)
}

// credentialString is a credential as the guest's systemd looks for it in SMBIOS
// strings of type 11 (systemd(1), "io.systemd.credential.binary:"). In Base64 it is one
// string, whatever is in it.
func credentialString(name string, value []byte) []byte {
	return []byte("io.systemd.credential.binary:" + name + "=" + base64.StdEncoding.EncodeToString(value))
}

// seedWarnings says what may surprise in a seed.
func seedWarnings(g *configs.Guest, facts seedFacts) []string {
	ci := g.CloudInit
	if ci.Hostname == "" || len(facts.Keys) > 0 || ci.UserData != "" || len(ci.Users) == 0 || !slices.Contains(ci.SSHKeys, configs.KeysOwner) {
		return nil
	}
	return []string{fmt.Sprintf("cloud_init.ssh_keys: there is no public key in %s, so that nobody can log in by ssh: ssh-keygen makes one", facts.Looked)}
}

// planSeed works out the seed and the credentials.
func (p *Plan) planSeed(facts seedFacts) (err error) {
	if p.seed, err = newSeed(p, facts); err != nil {
		return err
	}
	for i, c := range p.Guest.Credentials {
		p.credentials = append(p.credentials, credentialString(c.Name, facts.Credentials[i]))
	}
	p.Warnings = append(p.Warnings, seedWarnings(p.Guest, facts)...)
	return nil
}

// addSeed adds the seed as a disk, for which every cloud's kernel has a driver, and the
// credentials as strings. The disk comes behind the NICs, so that neither they nor the
// other disks are called otherwise in a guest that has one.
func (c *commandLine) addSeed(p *Plan, fds *descriptors) {
	if p.seed != nil {
		fd, set := fds.addSet(fdSeed, "the seed")
		c.add("-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, set))
		c.addJSON("-blockdev", map[string]any{
			"driver": "file", "node-name": fdSeed + "-file", "filename": fmt.Sprintf("/dev/fdset/%d", set),
			"read-only": true, "auto-read-only": false,
		})
		c.addJSON("-blockdev", map[string]any{"driver": "raw", "node-name": fdSeed, "file": fdSeed + "-file", "read-only": true, "auto-read-only": false})
		c.add("-device", "virtio-blk-pci,id=seed,drive=seed,serial="+seedLabel)
	}
	for i := range p.credentials {
		c.add("-smbios", fmt.Sprintf("type=11,path=/dev/fd/%d", fds.add(credentialName(i))))
	}
}

// credentialName is what a credential's descriptor is called.
func credentialName(i int) string { return fmt.Sprintf("credential%d", i) }

func describeSeed(ci configs.CloudInit, facts seedFacts) string {
	words := []string{"hostname " + ci.Hostname, "users " + strings.Join(ci.Users, " "), plural(len(facts.Keys), "ssh key")}
	if len(ci.Users) == 0 {
		words[1] = "no users"
	}
	if len(ci.Packages) > 0 {
		words = append(words, "packages "+strings.Join(ci.Packages, " "))
	}
	for _, path := range []string{ci.UserData, ci.NetworkConfig} {
		if path != "" {
			words = append(words, path)
		}
	}
	return strings.Join(words, ", ")
}
