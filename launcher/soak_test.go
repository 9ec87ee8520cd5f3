package launcher

import "os"

// soakOr chooses between what make soak does and what make test does.
func soakOr(soak, test int) int {
	if os.Getenv("VMRUN_SOAK") == "1" {
		return soak
	}
	return test
}
