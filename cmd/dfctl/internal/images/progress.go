package images

import (
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/imageindex"
)

// convertProgress shows a conversion as two rows for each platform.
type convertProgress struct {
	progress *output.Progress
	platform string
	rows     []output.Row
}

func newConvertProgress(p *output.Progress) *convertProgress { return &convertProgress{progress: p} }

func (c *convertProgress) update(p imageindex.Progress) {
	if c.platform != p.Platform {
		c.finish()
		c.platform = p.Platform
	}
	c.rows = []output.Row{{Name: "convert " + p.Platform, Done: p.Read, Total: p.ReadTotal}}
	if p.SendTotal > 0 {
		c.rows = append(c.rows, output.Row{Name: "push " + p.Platform, Done: p.Sent, Total: p.SendTotal})
	}
	c.progress.Update(c.rows...)
}

func (c *convertProgress) finish() {
	if len(c.rows) > 0 {
		c.progress.Finish(c.rows...)
		c.rows = nil
	}
}
