package preheat

import (
	"fmt"
	"io"
	"strings"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/cluster"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/task"
)

// writeJob writes a job for people: its state, a line per blob, and a line for
// everything that has failed.
func writeJob(w io.Writer, job *cluster.Job) error {
	err := output.WriteFields(w,
		[2]string{"job", fmt.Sprint(job.ID)},
		[2]string{job.Type, job.Object()},
		[2]string{"scope", job.Scope.String()},
		[2]string{"state", job.State},
		[2]string{"error", job.Error},
	)
	if err != nil || len(job.Blobs) == 0 {
		return err
	}
	blobs := output.NewTable("BLOB", "SIZE", "SUPERNODE", "NODES", "STATE")
	failures := output.NewTable("NODE", "BLOB", "STATE", "HELD", "REASON")
	for i := range job.Blobs {
		b := &job.Blobs[i]
		blobs.Add(blobName(b), output.Bytes(b.Size), share(b.HeldBytes, b.Size), nodes(b), b.State)
		if b.Error != "" {
			failures.Add("supernode", blobName(b), b.State, share(b.HeldBytes, b.Size), b.Error)
		}
		for _, p := range b.Peers {
			// Of a job that has ended, whatever has not succeeded has failed.
			if p.Error != "" || job.Ended() && p.State != cluster.Succeeded {
				failures.Add(p.Name, blobName(b), p.State, share(p.HeldBytes, b.Size), p.Error)
			}
		}
	}
	if err := writeSection(w, blobs); err != nil {
		return err
	}
	if err := writeAcceleration(w, job); err != nil {
		return err
	}
	if failures.Len() == 0 {
		return nil
	}
	return writeSection(w, failures)
}

// writeAcceleration writes a line for each index that was asked for.
func writeAcceleration(w io.Writer, job *cluster.Job) error {
	if len(job.Acceleration) == 0 {
		return nil
	}
	table := output.NewTable("IMAGE", "INDEX", "SIZE", "STATE", "REASON")
	for _, a := range job.Acceleration {
		size := ""
		if a.Bytes > 0 {
			size = output.Bytes(a.Bytes)
		}
		table.Add(shortDigest(a.Image), shortDigest(a.Index), size, a.State, a.Error)
	}
	return writeSection(w, table)
}

func writeSection(w io.Writer, t *output.Table) error {
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return t.Write(w)
}

// nodes returns how many of the nodes asked for hold a blob.
func nodes(b *cluster.Blob) string {
	if len(b.Peers) == 0 {
		return ""
	}
	n := 0
	for _, p := range b.Peers {
		if p.State == cluster.Succeeded {
			n++
		}
	}
	return fmt.Sprintf("%d/%d", n, len(b.Peers))
}

func share(done, total int64) string {
	if total <= 0 {
		return ""
	}
	return fmt.Sprintf("%d%%", output.Percent(done, total))
}

func blobName(b *cluster.Blob) string {
	name := b.Digest
	if name == "" {
		name = b.TaskID
	}
	return shortDigest(name)
}

func shortDigest(name string) string {
	if strings.Contains(name, ":") {
		return task.ID(name).Short()
	}
	return name
}
