package launcher

import "testing"

func TestScopeOf(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"from a login", "session-3.scope", "vmrun-web1-7.scope"},
		{"from nothing", "", "vmrun-web1-7.scope"},
		{"goes on as another program", "vmrun-web1-7.scope", "vmrun-web1-7-1.scope"},
		{"and once more", "vmrun-web1-7-1.scope", "vmrun-web1-7-2.scope"},
		{"after a guest of another pid", "vmrun-web1-71.scope", "vmrun-web1-7.scope"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := scopeOf("web1", 7, tt.in); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}
