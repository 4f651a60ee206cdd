package cdn

import (
	"context"
	"fmt"

	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
)

// ensureURL finds the task that the URL leads to now, and goes on with it. A
// URL that was asked for a moment ago is not asked again; one that led to a
// known task before is asked with a HEAD, so that unchanged content is not
// sent again.
func (c *Cache) ensureURL(ctx context.Context, r Request) (*Object, error) {
	known, fresh := c.urls.get(r.URL)
	if fresh {
		if o := c.lookup(known.id); o != nil {
			if err := c.authorize(ctx, r); err != nil {
				o.Release()
				return nil, err
			}
			o.describe(known.meta)
			o.want(r) //nolint:contextcheck // fetches outlive the requests that start them
			return o, nil
		}
	}
	var o *Object
	mine := false
	_, err, _ := c.opening.Do("url "+r.URL, func() (any, error) {
		mine = true
		var err error
		o, err = c.resolve(ctx, r, known.id)
		return nil, err
	})
	if err != nil {
		if !mine && retryWithOwn(err) && ctx.Err() == nil {
			return c.ensureURL(ctx, r)
		}
		return nil, err
	}
	if !mine {
		return c.ensureURL(ctx, r)
	}
	c.accepted(r)
	o.want(r) //nolint:contextcheck // fetches outlive the requests that start them
	return o, nil
}

// resolve asks the origin what r.URL is now.
func (c *Cache) resolve(ctx context.Context, r Request, known task.ID) (*Object, error) {
	if known != "" {
		if info, err := c.o.Origin.Head(ctx, r.object(r.credentials())); err == nil && c.urlID(r, info) == known {
			if o := c.lookup(known); o != nil {
				c.urls.put(r.URL, known, metaOf(info))
				o.describe(metaOf(info))
				return o, nil
			}
		}
	}
	body, err := c.openFirst(ctx, r)
	if err != nil {
		return nil, err
	}
	r.ID = c.urlID(r, body.Info)
	meta := metaOf(body.Info)
	o, err := c.adopt(r, body) //nolint:contextcheck // fetches outlive the requests that start them
	if err == nil {
		c.urls.put(r.URL, o.id, meta)
	}
	return o, err
}

// urlID names the content behind a URL. Content without validators may change
// unnoticed, so each fetch of it is a task of its own.
func (c *Cache) urlID(r Request, info origin.Info) task.ID {
	etag := info.ETag
	if etag == "" && info.LastModified == "" {
		etag = fmt.Sprintf("fetched %d", c.o.Now().UnixNano())
	}
	return task.URLID(r.URL, etag, info.LastModified, info.Length)
}
