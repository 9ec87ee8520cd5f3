package launcher

import "slices"

// Schedule says which jobs may begin: one whose predecessors are done, as long as
// no more than parallel are being acted on. It does nothing itself, and belongs to
// one goroutine.
type Schedule struct {
	jobs     []Job
	states   map[string]jobState
	parallel int  // 0: any number
	goOn     bool // after a failure too, with those that come after it
}

type jobState int

const (
	jobWaiting  jobState = iota
	jobActing            // something is being done to the guest
	jobSettling          // it has been done, and the guest is to become ready
	jobOver
	jobLost // or skipped
)

// NewSchedule is one for these jobs, each name once. What a job comes after that is
// no job is done. With goOn neither a failure nor a circle keeps anything from
// beginning; without it there must be no circle.
func NewSchedule(jobs []Job, parallel int, goOn bool) *Schedule {
	s := &Schedule{jobs: jobs, states: map[string]jobState{}, parallel: parallel, goOn: goOn}
	for _, j := range jobs {
		s.states[j.Name] = jobWaiting
	}
	return s
}

// Begin returns the jobs that may begin now, as begun.
func (s *Schedule) Begin() []Job {
	acting, busy := 0, false
	for _, state := range s.states {
		busy = busy || state == jobActing || state == jobSettling
		if state == jobActing {
			acting++
		}
	}
	var list []Job
	for _, j := range s.jobs {
		if s.parallel > 0 && acting >= s.parallel {
			break
		}
		if s.waits(j) && !slices.ContainsFunc(j.After, s.holdsUp) {
			s.states[j.Name] = jobActing
			acting++
			list = append(list, j)
		}
	}
	if i := slices.IndexFunc(s.jobs, s.waits); len(list) == 0 && !busy && s.goOn && i >= 0 {
		// Guests that were started from different versions of a file can come after each other.
		list = s.jobs[i : i+1]
		s.states[list[0].Name] = jobActing
	}
	return list
}

func (s *Schedule) waits(j Job) bool { return s.states[j.Name] == jobWaiting }

// holdsUp reports whether a job that comes after the named one has to wait.
func (s *Schedule) holdsUp(name string) bool {
	state, ok := s.states[name]
	return ok && state != jobOver && !(state == jobLost && s.goOn)
}

// Needed reports whether a job that has not begun comes after the named one.
func (s *Schedule) Needed(name string) bool {
	return slices.ContainsFunc(s.jobs, func(j Job) bool {
		return s.waits(j) && slices.Contains(j.After, name)
	})
}

// Settle notes that what there was to do has been done: the guest need only become
// ready.
func (s *Schedule) Settle(name string) { s.states[name] = jobSettling }

// Done notes that the job is done.
func (s *Schedule) Done(name string) { s.states[name] = jobOver }

// Failed notes that the job has failed, and returns those that are skipped for it.
func (s *Schedule) Failed(name string) (skipped []Job) {
	s.states[name] = jobLost
	if s.goOn {
		return nil
	}
	for _, j := range s.jobs {
		if s.waits(j) && slices.Contains(j.After, name) {
			skipped = append(append(skipped, j), s.Failed(j.Name)...)
		}
	}
	return skipped
}

// Cancel returns the jobs that have not begun, and never will.
func (s *Schedule) Cancel() (left []Job) {
	for _, j := range s.jobs {
		if s.waits(j) {
			s.states[j.Name] = jobLost
			left = append(left, j)
		}
	}
	return left
}
