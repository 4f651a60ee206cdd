package preheat

import (
	"context"
	"fmt"
	"time"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/cluster"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
)

const (
	// A job outlives its follower's connection: to a restarted supernode it
	// takes some seconds to come back.
	maxReconnects = 5
	firstPause    = time.Second
	maxRows       = 15
)

// follow shows the job's progress until it ends, and returns it as it is then.
func (g *group) follow(ctx context.Context, client *cluster.Client, job *cluster.Job) (*cluster.Job, error) {
	progress := g.console.NewProgress(g.format == output.JSON)
	last, failures := job, 0
	for {
		ended, err := client.FollowPreheat(ctx, job.ID, func(j *cluster.Job) {
			last, failures = j, 0
			progress.Update(rows(j, progress.Terminal())...)
		})
		if err == nil {
			progress.Finish(rows(ended, progress.Terminal())...)
			return ended, nil
		}
		_, final := exit.Code(err)
		if failures++; ctx.Err() != nil || final || failures > maxReconnects {
			progress.Finish(rows(last, progress.Terminal())...)
			g.console.Remarkf("the job goes on; see 'dfctl preheat show %[1]d', end it by 'dfctl preheat cancel %[1]d'", job.ID)
			return nil, err
		}
		select {
		case <-g.after(firstPause << (failures - 1)):
		case <-ctx.Done():
		}
	}
}

// rows returns a row per blob for a terminal, the unfinished ones if there are
// too many, and one with the total for elsewhere.
func rows(job *cluster.Job, terminal bool) []output.Row {
	sum := output.Row{Name: "total", Done: job.Totals.BytesHeld, Total: job.Totals.BytesTotal}
	if job.Ended() {
		sum.Note = job.State
	}
	if !terminal || len(job.Blobs) == 0 {
		sum.Name = job.Object()
		return []output.Row{sum}
	}
	var out []output.Row
	for i := range job.Blobs {
		b := &job.Blobs[i]
		row := output.Row{Name: blobName(b)}
		row.Done, row.Total = blobBytes(b)
		if b.State != cluster.Running {
			row.Note = b.State
		}
		if len(job.Blobs) <= maxRows || b.State == cluster.Running && len(out) < maxRows {
			out = append(out, row)
		}
	}
	if len(job.Blobs) > 1 {
		out = append(out, sum)
	}
	return out
}

// blobBytes counts what is held by the supernode and all nodes asked for.
func blobBytes(b *cluster.Blob) (done, total int64) {
	done, total = b.HeldBytes, b.Size
	for _, p := range b.Peers {
		done += p.HeldBytes
		total += b.Size
	}
	return done, total
}

// outcome returns the error that a job's end is, nil only for full success.
func outcome(job *cluster.Job) error {
	if job.State == cluster.Succeeded {
		return notAccelerated(job)
	}
	err := fmt.Errorf("preheat %s: job %d %s", output.Clean(job.Object()), job.ID, stateWords(job.State))
	if job.Error != "" {
		err = fmt.Errorf("%w: %s", err, output.Clean(job.Error))
	}
	if failed := job.Totals.PeersFailed; failed > 0 {
		err = fmt.Errorf("%w: %s failed", err, output.Count(failed, "node"))
	}
	if job.State == cluster.TimedOut {
		return fmt.Errorf("%w; what is held stays: run the command again to continue, or with a longer --timeout", err)
	}
	return err
}

// notAccelerated returns an error if an index was asked for and not made.
func notAccelerated(job *cluster.Job) error {
	for _, a := range job.Acceleration {
		if a.State != cluster.Succeeded {
			return fmt.Errorf("preheat %s: the image is held, but was not accelerated: job %d: %s: %s",
				output.Clean(job.Object()), job.ID, output.Clean(a.Image), output.Clean(a.Error))
		}
	}
	return nil
}

func stateWords(state string) string {
	switch state {
	case cluster.Partial:
		return "succeeded only in part"
	case cluster.Failed:
		return "failed"
	case cluster.Cancelled:
		return "was cancelled"
	case cluster.TimedOut:
		return "did not end in time"
	}
	return "ended as " + output.Clean(state)
}
