package tracker

import (
	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/wire"
	"github.com/damselfly-io/damselfly/supernode/cdn"
)

// describe answers a request for obj.
func describe(request uint64, obj *cdn.Object) *apiv1.TaskInfo {
	meta := obj.Meta()
	return &apiv1.TaskInfo{
		Request: request, TaskId: string(obj.ID()), Table: wire.FromTable(obj.Table()),
		ContentType: meta.ContentType, Etag: meta.ETag, LastModified: meta.LastModified,
	}
}

// takesPart reports whether p is interested in obj, and so was told its table: a
// variable one may have a million ends, and readers of ranges ask often.
func (t *Tracker) takesPart(p *peer, obj *cdn.Object) bool {
	s := t.find(obj.ID())
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.members[p.name]
	return ok && m.p == p && m.interested && s.table.Ends != nil && s.table.Equal(obj.Table())
}
