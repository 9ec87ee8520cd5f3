package launcher

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGuestUsers(t *testing.T) {
	for _, tt := range []struct {
		name, uid, gid string
		want           userRange
		err            string
	}{
		{"nobody's", "alice:100000:65536\n", "", defaultUsers, ""},
		{"a range", "alice:100000:65536\nvmrun:2000000:100\n", "vmrun:2000000:100\n", userRange{2000000, 100}, ""},
		{"more than there are slots", "vmrun:2000000:1000000", "vmrun:2000000:1000000", userRange{2000000, maxSlots}, ""},
		{"users alone", "vmrun:2000000:100\n", "", userRange{}, "the same range"},
		{"other groups", "vmrun:2000000:100\n", "vmrun:3000000:100\n", userRange{}, "the same range"},
		{"the system's", "vmrun:0:1000\n", "vmrun:0:1000\n", userRange{}, "uid:1: \"vmrun:0:1000\" is no range"},
		{"beyond the last", "x:1:1\nvmrun:2147483000:1000\n", "", userRange{}, "uid:2: "},
		{"overflow", "vmrun:2000000:9223372036854775807\n", "", userRange{}, "uid:1: "},
		{"no numbers", "vmrun:a:b\n", "", userRange{}, "uid:1: "},
		{"too few words", "vmrun:2000000\n", "", userRange{}, "uid:1: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			uid, gid := filepath.Join(dir, "uid"), filepath.Join(dir, "gid") // the second may be missing
			if err := os.WriteFile(uid, []byte(tt.uid), 0o600); err != nil {
				t.Fatal(err)
			}
			if tt.gid != "" {
				if err := os.WriteFile(gid, []byte(tt.gid), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := usersFrom(uid, gid)
			if tt.err == "" && (err != nil || got != tt.want) {
				t.Errorf("%+v, %v; want %+v", got, err, tt.want)
			}
			if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("%v, want %q", err, tt.err)
			}
		})
	}
}
