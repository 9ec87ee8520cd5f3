package launcher

import (
	"context"
	"errors"
	"time"

	"vmrun/qmp"
)

// QEMU's jobs (qapi/job.json), of which there is one of ours at a time.

// runJob begins a job and waits for its end.
func runJob(ctx context.Context, mon *qmp.Client, command string, args map[string]any) error {
	sub := mon.Subscribe("JOB_STATUS_CHANGE")
	defer sub.Close()
	if err := mon.Execute(ctx, command, args, nil); err != nil {
		return err
	}
	return awaitJobs(ctx, mon, sub)
}

// job is what is read of query-jobs' answer (qapi/job.json, JobInfo).
type job struct {
	ID     string `json:"id"`
	Type   string `json:"type"`
	Status string `json:"status"`
	Error  string `json:"error"`
}

// awaitJobs waits until no job of ours is under way, and returns the error of the last.
func awaitJobs(ctx context.Context, mon *qmp.Client, sub *qmp.Subscription) error {
	for {
		ask, cancel := context.WithTimeout(ctx, commandTimeout)
		ours, err := queryJobs(ask, mon)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, context.DeadlineExceeded): // QEMU does little else meanwhile
		case err != nil:
			return err
		case ours == nil:
			return nil
		case ours.Status == "concluded":
			err := dismissJobs(ctx, mon)
			if ours.Error != "" {
				err = errors.Join(qmp.Errorf("QEMU: %s", ours.Error), err)
			}
			return err
		}
		select {
		case <-sub.Events():
		case <-time.After(time.Second): // should events be lost
		case <-ctx.Done():
		}
	}
}

func queryJobs(ctx context.Context, mon *qmp.Client) (*job, error) {
	var list []job
	err := mon.Execute(ctx, "query-jobs", nil, &list)
	for _, j := range list {
		if j.ID == liveJob {
			return &j, err
		}
	}
	return nil, err
}

// dismissJobs has QEMU forget a job of ours that has ended.
func dismissJobs(ctx context.Context, mon *qmp.Client) error {
	ours, err := queryJobs(ctx, mon)
	if err != nil || ours == nil || ours.Status != "concluded" {
		return err
	}
	return mon.Execute(ctx, "job-dismiss", map[string]any{"id": liveJob}, nil)
}
