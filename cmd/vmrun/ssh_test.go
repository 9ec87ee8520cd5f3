package main

import (
	"net/netip"
	"strings"
	"testing"
)

func TestSSHCommand(t *testing.T) {
	addr := netip.MustParseAddr("2001:db8::11")
	got := strings.Join(sshCommand("web1", addr, `/a b/%c"`, []string{"/k"}, []string{"ls", "-l"}, sshOptions{user: "me", port: 2222}), "|")
	want := `ssh|-o|HostName=2001:db8::11|-o|HostKeyAlias=vmrun-web1|-o|StrictHostKeyChecking=accept-new` +
		`|-o|UserKnownHostsFile="/a b/%%c\""|-i|/k|-p|2222|-l|me|--|vmrun-web1|ls|-l`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	got = strings.Join(sshCommand("web1", addr, "", nil, nil, sshOptions{port: 22}), "|")
	if want := `ssh|-o|HostName=2001:db8::11|-o|HostKeyAlias=vmrun-web1|-o|StrictHostKeyChecking=accept-new|--|vmrun-web1`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
