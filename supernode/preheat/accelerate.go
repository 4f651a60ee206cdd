package preheat

import (
	"context"
	"errors"
	"slices"

	"github.com/damselfly-io/damselfly/internal/origin"
)

// Accelerator makes the indexes of images; package accelerate has one.
type Accelerator interface {
	// Accelerate makes the index of an image and offers it, unless it is offered
	// already. It returns the digest of the index and the size of what was made.
	Accelerate(ctx context.Context, image AcceleratedImage) (index string, bytes int64, err error)
}

// AcceleratedImage names an image for an Accelerator.
type AcceleratedImage struct {
	Base string // URL of the registry, without /v2/
	Repo string
	// Digest of the image's manifest, for one platform.
	Digest string
	// Credential to read it with; the zero one is the supernode's own.
	Credential origin.Credential
}

// accelerate makes the indexes that the job asks for, one by one, of what the
// cache has just got. The job waits for them and goes on whatever they come to.
func (r *run) accelerate() {
	for i, row := range r.j.snapshot().Acceleration {
		if row.State.Final() {
			continue
		}
		if r.missing() {
			row.State, row.Error = Failed, "the supernode could not fetch all of the image"
			r.row(i, row)
			continue
		}
		row.State = Running
		r.row(i, row)
		index, bytes, err := r.m.o.Accelerator.Accelerate(r.ctx, AcceleratedImage{
			Base: r.j.subject.image.base, Repo: r.j.subject.image.repo, Digest: row.Image, Credential: r.j.cred,
		})
		switch {
		case errors.Is(context.Cause(r.ctx), errTimedOut):
			row.State, row.Error = TimedOut, errTimedOut.Error()
		case r.ctx.Err() != nil:
			return
		case err != nil:
			row.State, row.Error = Failed, r.j.message(err)
			r.m.o.Log.Warn("an image is preheated, but not accelerated", "job", r.j.id, "image", row.Image, "error", row.Error)
		default:
			row.State, row.Index, row.Bytes = Succeeded, index, bytes
		}
		r.row(i, row)
	}
}

// missing reports whether the supernode lacks something of the image.
func (r *run) missing() bool {
	return slices.ContainsFunc(r.blobs, func(b *blob) bool { return b.row.State != Succeeded })
}

// row publishes one row. Those that were published before are not changed.
func (r *run) row(i int, row Acceleration) {
	snap := r.j.snapshot()
	snap.Acceleration = slices.Clone(snap.Acceleration)
	snap.Acceleration[i] = row
	r.j.publish(snap)
}

// endedRows gives rows that came to no end that of their job.
func endedRows(rows []Acceleration, s State) []Acceleration {
	rows = slices.Clone(rows)
	for i := range rows {
		if !rows[i].State.Final() {
			rows[i].State = s
		}
	}
	return rows
}
