package configs

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// The words that stand for something in [cloud_init].
const (
	UserDefault = "default" // the user that the image has or makes, as "debian"
	KeysOwner   = "owner"   // the public keys of the spec file's owner
)

// maxHostname is HOST_NAME_MAX of Linux (sethostname(2)).
const maxHostname = 64

// cloudInit resolves [cloud_init] of a guest with a name. It has a hostname whenever
// the table is there.
func (c *resolver) cloudInit(raw *rawCloudInit, name string) CloudInit {
	if raw == nil {
		return CloudInit{}
	}
	ci := CloudInit{
		Hostname:      strings.Trim(strings.ReplaceAll(name, "_", "-"), "-."),
		Users:         []string{UserDefault},
		SSHKeys:       []string{KeysOwner},
		Packages:      raw.Packages,
		UserData:      c.path("cloud_init.user_data", raw.UserData),
		NetworkConfig: c.path("cloud_init.network_config", raw.NetworkConfig),
	}
	if raw.Hostname != nil {
		ci.Hostname = *raw.Hostname
		if err := checkHostname(ci.Hostname); err != nil {
			c.addf("cloud_init.hostname", "%v", err)
		}
	}
	if raw.Users != nil {
		ci.Users = raw.Users
		c.users("cloud_init.users", raw.Users)
	}
	if raw.SSHKeys != nil {
		ci.SSHKeys = c.sshKeys("cloud_init.ssh_keys", raw.SSHKeys)
	}
	for i, name := range raw.Packages {
		if !packageName().MatchString(name) {
			c.addf(indexKey("cloud_init.packages", i), "%s is not the name of a package", quote(name))
		}
	}
	return ci
}

var (
	// hostLabel is a part of a host's name (RFC 1123, section 2.1).
	hostLabel = lazyPattern(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
	// userName is useradd(8)'s.
	userName = lazyPattern(`^[a-z_][a-z0-9_-]{0,30}[a-z0-9_$-]?$`)
	// packageName has those of dpkg, rpm, apk and pacman, with a version or an architecture.
	packageName = lazyPattern(`^[A-Za-z0-9][A-Za-z0-9+._:=~-]*$`)
)

func checkHostname(name string) error {
	const hint = `write labels of letters, digits and "-" with dots between them, as "web1" or "web1.example.org"`
	if len(name) > maxHostname {
		return fmt.Errorf("%s has %d characters, and a host's name %d at most", quote(name), len(name), maxHostname)
	}
	for label := range strings.SplitSeq(name, ".") {
		if !hostLabel().MatchString(label) {
			return fmt.Errorf("%s is not a host's name: %s", quote(name), hint)
		}
	}
	return nil
}

func (c *resolver) users(key string, names []string) {
	for i, name := range names {
		switch {
		case !userName().MatchString(name):
			c.addf(indexKey(key, i), `%s is not a user's name: use lower-case letters, digits, "_" and "-", with a letter first`, quote(name))
		case slices.Contains(names[:i], name):
			c.addf(indexKey(key, i), "%s is in the list already: remove one", quote(name))
		}
	}
}

// sshKeys takes public keys, the paths of files with such, and the word for the owner's.
func (c *resolver) sshKeys(key string, texts []string) []string {
	list := []string{}
	for i, text := range texts {
		at := indexKey(key, i)
		switch kind, _, _ := strings.Cut(text, " "); {
		case text == KeysOwner:
		case strings.Contains(text, "PRIVATE KEY"):
			c.addf(at, "a private key, which no guest is to have: write the public one, of the file that ends in .pub")
		case isKeyType(kind):
			if err := CheckSSHKey(text); err != nil {
				c.addf(at, "%v", err)
			}
		default:
			text = c.path(at, &text)
		}
		list = append(list, text)
	}
	return list
}

// isKeyType tells the types of public keys (sshd(8), AUTHORIZED_KEYS FILE FORMAT) from
// the names of files.
func isKeyType(word string) bool {
	return strings.HasPrefix(word, "ssh-") || strings.HasPrefix(word, "ecdsa-sha2-") || strings.HasPrefix(word, "sk-")
}

// CheckSSHKey says why a text cannot be a public key in the form of a line of
// authorized_keys, without options, or returns nil. No error holds words of it.
func CheckSSHKey(line string) error {
	kind, rest, _ := strings.Cut(line, " ")
	data, _, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
	blob, err := base64.StdEncoding.DecodeString(data)
	switch {
	case !isKeyType(kind), strings.ContainsAny(line, "\r\n\x00"), err != nil:
		return errors.New(`not a public key: write the line of a .pub file, as "ssh-ed25519 AAAA... name"`)
	case len(blob) < 4 || uint64(binary.BigEndian.Uint32(blob)) > uint64(len(blob)-4) || string(blob[4:4+binary.BigEndian.Uint32(blob)]) != kind:
		return errors.New("a public key that is cut short, or not of the type that it begins with: copy the whole line of the .pub file")
	}
	return nil
}

// cloudNetwork checks what only cloud-init can give to the guest.
func (c *resolver) cloudNetwork(g *Guest) {
	for i, n := range g.NICs {
		at := indexKey("nic", i) + "."
		if g.CloudInit.Hostname == "" && !c.isKnown("cloud_init") {
			c.withoutCloudInit(at, n)
		}
	}
}

func (c *resolver) withoutCloudInit(at string, n NIC) {
	const why = "cloud-init alone gives it to the guest, and there is no [cloud_init]"
	for _, p := range n.Prefixes {
		k := slices.Index(n.Addresses, p.Addr())
		c.addf(indexKey(at+"addresses", k), `"%s" has a prefix: %s: add it, or write %q`, p, why, p.Addr())
	}
	if len(n.Gateways) > 0 {
		c.addf(at+"gateways", "%s: add it, or remove gateways", why)
	}
	if len(n.Nameservers) > 0 {
		c.addf(at+"nameservers", "%s: add it, or remove nameservers", why)
	}
}

// gateways checks the guest's way out of its subnets: one of each kind at most. The
// subnets are those of count addresses.
func (c *resolver) gateways(at string, texts []string, subnets []netip.Prefix, count int) []netip.Addr {
	key := at + "gateways"
	list := c.plainAddresses(key, texts)
	for i := range count {
		if c.isKnown(indexKey(at+"addresses", i)) {
			return list // it may be that one's
		}
	}
	for i, addr := range list {
		at := indexKey(key, i)
		within := func(p netip.Prefix) bool { return p.Masked().Contains(addr) }
		linkLocal := func(p netip.Prefix) bool { return addr.Is6() && addr.IsLinkLocalUnicast() && p.Addr().Is6() }
		same := func(other netip.Addr) bool { return other.Is4() == addr.Is4() }
		switch {
		case slices.ContainsFunc(list[:i], same):
			c.addf(at, "%s is a second gateway of its kind: keep one", addr)
		case !slices.ContainsFunc(subnets, within) && !slices.ContainsFunc(subnets, linkLocal):
			c.addf(at, "%s is in the subnet of none of the addresses: give the address that it is for with its prefix, as %q", addr, "192.0.2.10/24")
		}
	}
	return list
}

// plainAddresses is addresses for those that are not the guest's own, which have no
// prefix.
func (c *resolver) plainAddresses(key string, texts []string) []netip.Addr {
	list, prefixes := c.addresses(key, texts)
	for _, p := range prefixes {
		c.addf(indexKey(key, slices.Index(list, p.Addr())), `"%s" has a prefix, which is for the guest's own addresses: write %q`, p, p.Addr())
	}
	return list
}

// credentials resolves the [[credential]] tables.
func (c *resolver) credentials(raws []rawCredential) []Credential {
	var list []Credential
	size := 0
	for i, raw := range raws {
		key := indexKey("credential", i)
		cred := Credential{File: c.path(key+".file", raw.File)}
		switch {
		case raw.Name == nil:
			c.addf(key+".name", `missing: a credential has one, as name = "passwd.hashed-password.root"`)
		case len(*raw.Name) > maxCredentialName || !isWord(*raw.Name, "._-@"):
			c.addf(key+".name", `%s is not a credential's name: use %d letters, digits, ".", "_", "-" and "@" at most, with a letter or digit first`, quote(*raw.Name), maxCredentialName)
		default:
			cred.Name = *raw.Name
		}
		if slices.ContainsFunc(list, func(earlier Credential) bool { return cred.Name != "" && earlier.Name == cred.Name }) {
			c.addf(key+".name", "%s is the name of another one already: keep one", quote(cred.Name))
		}
		switch {
		case raw.Value != nil && raw.File != nil:
			c.addf(key+".value", "value and file are both given: keep one")
		case raw.Value == nil && raw.File == nil && !c.isKnown(key+".value") && !c.isKnown(key+".file"):
			c.addf(key+".file", "missing: name the file that holds it, or write value where it is no secret")
		case raw.Value != nil:
			cred.Value = *raw.Value
			if size += len(cred.Value); size > MaxCredentials {
				c.addf(key+".value", "the values have more than %s together, for which there is no room", Size(MaxCredentials))
			}
		}
		list = append(list, cred)
	}
	return list
}

const maxCredentialName = 255 // systemd.exec(5), as a file's

// MaxCredentials is how many bytes the credentials of a guest may have together: as
// SMBIOS strings they are in one table of 64 KiB with the rest, in Base64.
const MaxCredentials = 32 << 10
