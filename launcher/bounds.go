package launcher

import (
	"time"

	"vmrun/configs"
)

// slack is for what vmrun itself has to do around a guest's start and end, on a
// host that is busy.
const slack = 15 * time.Second

// StartBound is how long a guest's start may take until the guest is ready, for
// whoever waits for its supervisor. 0: for ever.
func StartBound(g *configs.Guest) time.Duration {
	if g.Ready.Timeout == 0 {
		return 0
	}
	return startTimeout + g.Ready.Timeout + slack
}

// StopBound is how long a supervisor may take to end its guest by the stop ladder.
func StopBound(g *configs.Guest) time.Duration {
	return g.Stop.Timeout + g.Stop.QuitTimeout + killTimeout + slack
}
