package launcher

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"golang.org/x/sys/unix"

	"vmrun/configs"
)

// What is read for a guest, in bytes: a file of keys, and one of user-data, of which
// cloud-init itself knows no bound.
const (
	maxKeyFile  = 64 << 10
	maxUserData = 4 << 20
)

// readSeed reads what a guest's seed and credentials are made of beside the spec.
func readSeed(g *configs.Guest) seedFacts {
	f := seedFacts{Problems: map[string]error{}}
	ci := g.CloudInit
	for i, text := range ci.SSHKeys {
		var err error
		keys := []string{text}
		switch {
		case text == configs.KeysOwner:
			f.Looked, keys, err = ownerKeys(g.Path)
		case filepath.IsAbs(text):
			keys, err = readKeys(text)
		}
		f.problem(fmt.Sprintf("cloud_init.ssh_keys[%d]", i), err)
		for _, key := range keys {
			if !slices.Contains(f.Keys, key) {
				f.Keys = append(f.Keys, key)
			}
		}
	}
	f.UserData = f.read("cloud_init.user_data", ci.UserData, maxUserData)
	f.Network = f.read("cloud_init.network_config", ci.NetworkConfig, maxUserData)
	room := configs.MaxCredentials
	for i, c := range g.Credentials {
		value := []byte(c.Value)
		if c.File != "" {
			value = f.read(fmt.Sprintf("credential[%d].file", i), c.File, room)
		}
		room -= min(room, len(value))
		f.Credentials = append(f.Credentials, value)
	}
	return f
}

// read reads the file of a key, "" for none.
func (f *seedFacts) read(key, path string, most int) []byte {
	if path == "" {
		return nil
	}
	data, err := readInput(path, most)
	f.problem(key, err)
	return data
}

func (f *seedFacts) problem(key string, err error) {
	if err != nil {
		f.Problems[key] = err
	}
}

// readInput reads a regular file of so many bytes at most.
func readInput(path string, most int) ([]byte, error) {
	src, err := openInput(path, os.O_RDONLY, unix.S_IFREG)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist", path)
	}
	if err != nil {
		return nil, err
	}
	defer src.Close()
	data, err := io.ReadAll(io.LimitReader(src, int64(most)+1))
	if err == nil && len(data) > most {
		return nil, fmt.Errorf("%s is larger than the %d bytes that there is room for", path, most)
	}
	return data, err
}

// readKeys reads a file with a public key in each line.
func readKeys(path string) ([]string, error) {
	data, err := readInput(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	var keys []string
	for number, line := range keyLines(data) {
		if err := configs.CheckSSHKey(line); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, number, err)
		}
		keys = append(keys, line)
	}
	if keys == nil {
		return nil, fmt.Errorf("%s holds no public key", path)
	}
	return keys, nil
}

// keyLines goes through the lines of a file of keys that are no comments.
func keyLines(data []byte) func(yield func(number int, line string) bool) {
	return func(yield func(int, string) bool) {
		lines := bufio.NewScanner(bytes.NewReader(data))
		for number := 1; lines.Scan(); number++ {
			line := strings.TrimSpace(lines.Text())
			if line != "" && line[0] != '#' && !yield(number, line) {
				return
			}
		}
	}
}

// ownerKeys reads the public keys of the user whom a spec belongs to. Whose home is
// not here, or holds none, has none: a spec may be anybody's. So is what lies there,
// and what is no key is passed over without a word of it.
func ownerKeys(spec string) (dir string, keys []string, err error) {
	info, err := os.Stat(spec)
	if err != nil {
		return "", nil, err
	}
	uid := strconv.Itoa(int(info.Sys().(*syscall.Stat_t).Uid))
	owner, err := user.LookupId(uid)
	if err != nil || owner.HomeDir == "" {
		return "the home of user " + uid, nil, nil
	}
	dir = filepath.Join(owner.HomeDir, ".ssh")
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".pub") {
			continue
		}
		data, err := readInput(filepath.Join(dir, e.Name()), maxKeyFile)
		if err != nil {
			continue
		}
		for _, line := range keyLines(data) {
			if configs.CheckSSHKey(line) == nil {
				keys = append(keys, line)
			}
		}
	}
	return dir, keys, nil
}

// SeedUser is the first user that the seed of a guest makes by name, "" for none.
func SeedUser(base, name string) string {
	rec, err := guestDir(base, name).readRecord()
	if err != nil {
		return ""
	}
	for _, user := range rec.Guest.CloudInit.Users {
		if user != configs.UserDefault {
			return user
		}
	}
	return ""
}

// addSeedSteps adds the steps for the seed and the credentials.
func addSeedSteps(p *Plan, facts seedFacts, add func(string, func(*life, context.Context) error, string, ...any)) {
	if p.seed != nil {
		add("seed make", (*life).makeSeed, "make a seed for cloud-init in sealed memory: %s", describeSeed(p.Guest.CloudInit, facts))
	}
	for i, c := range p.Guest.Credentials {
		add(credentialName(i)+" load", loadCredential(i), "put credential %s into sealed memory", c.Name)
	}
}

// makeSeed makes the file system with the plan's seed in sealed memory, open only for
// reading, as QEMU asks its fdset for it.
func (l *life) makeSeed(context.Context) error {
	image, err := isoImage(seedLabel, l.plan.seed)
	if err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	defer image.Close()
	l.files[fdSeed], err = os.Open(fmt.Sprintf("/proc/self/fd/%d", image.Fd()))
	return err
}

// isoImage writes an ISO 9660 file system with Rock Ridge into sealed memory. The
// library wants the files in a directory first: that is in a file system in memory
// which nobody else sees, and which is gone at the end.
func isoImage(label string, files map[string][]byte) (*os.File, error) {
	mount, err := memoryMount()
	if err != nil {
		return nil, err
	}
	defer mount.Close()
	dir := fmt.Sprintf("/proc/self/fd/%d/root", mount.Fd())
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return nil, err
		}
	}
	return sealedMemory(label, func(image *os.File) error {
		iso, err := iso9660.Create(file.New(image, false), 0, 0, 0, dir)
		if err != nil {
			return err
		}
		return iso.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: label})
	})
}

// memoryMount mounts a tmpfs that has no place in any mount namespace and vanishes
// with its descriptor (fsopen(2), fsmount(2)).
func memoryMount() (*os.File, error) {
	config, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(config)
	if err := unix.FsconfigCreate(config); err != nil {
		return nil, fmt.Errorf("fsconfig: %w", err)
	}
	fd, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	return os.NewFile(uintptr(fd), "tmpfs"), nil
}

// loadCredential puts a credential into sealed memory, from which QEMU reads it.
func loadCredential(i int) func(*life, context.Context) error {
	return func(l *life, _ context.Context) (err error) {
		l.files[credentialName(i)], err = sealedMemory("credential", func(f *os.File) error {
			_, err := f.Write(l.plan.credentials[i])
			return err
		})
		return err
	}
}
