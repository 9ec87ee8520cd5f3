package launcher

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
)

// userRange is the users that guests run as, one each, and the groups with the
// same numbers. The slot of a guest counts from first.
type userRange struct{ first, count int }

// defaultUsers lie above systemd's ranges and below 2³¹ (systemd.io/UIDS-GIDS).
var defaultUsers = userRange{first: 1_900_000_000, count: maxSlots}

// rangeOwner is the name in /etc/subuid whose range guests get.
const rangeOwner = "vmrun"

// guestUsers is vmrun's own range in /etc/subuid and /etc/subgid, as root gives
// such ranges to others (subuid(5)), or else the default. It is read once: a
// change has an effect on supervisors that start after it.
var guestUsers = sync.OnceValues(func() (userRange, error) { return usersFrom("/etc/subuid", "/etc/subgid") })

func usersFrom(subuid, subgid string) (userRange, error) {
	users, err := subordinate(subuid)
	if err != nil {
		return users, err
	}
	groups, err := subordinate(subgid)
	switch {
	case err != nil:
		return users, err
	case users != groups:
		return users, fmt.Errorf("%s and %s have to give guests the same range: write %s:FIRST:COUNT into both", subuid, subgid, rangeOwner)
	case users.count == 0:
		return defaultUsers, nil
	}
	users.count = min(users.count, maxSlots)
	return users, nil
}

// subordinate reads vmrun's range; without one it is the zero value.
func subordinate(path string) (userRange, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return userRange{}, err
	}
	line := 0
	for text := range strings.Lines(string(data)) {
		line++
		text = strings.TrimSpace(text)
		fields := strings.Split(text, ":")
		if fields[0] != rangeOwner {
			continue
		}
		var users userRange
		if len(fields) == 3 {
			users.first, _ = strconv.Atoi(fields[1])
			users.count, _ = strconv.Atoi(fields[2])
		}
		// Users below 1000 are the system's (login.defs(5)).
		if users.first < 1000 || users.first > math.MaxInt32 || users.count < 1 || users.count > math.MaxInt32-users.first {
			return users, fmt.Errorf("%s:%d: %q is no range of users for guests: write %s:%d:%d, for example",
				path, line, text, rangeOwner, defaultUsers.first, defaultUsers.count)
		}
		return users, nil
	}
	return userRange{}, nil
}

// guestUsersOrDefault is for all but a start, which fails without a range.
func guestUsersOrDefault() userRange {
	users, err := guestUsers()
	if err != nil {
		return defaultUsers
	}
	return users
}

// userOf is the user of the guest in a slot.
func userOf(slot int) int { return guestUsersOrDefault().first + slot }
