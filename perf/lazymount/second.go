package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
)

// second counts what the registry sends of blobs when a second node uses an image
// that a first one has.
func second(ctx context.Context, l *lab, r *result) error {
	img, err := l.real(ctx)
	if err != nil {
		return err
	}
	for _, backend := range l.o.backends {
		f := figure{Mode: "second", With: backend, Name: "blob bytes that the registry sends for a second node", Unit: "B", Goal: atMost(0)}
		for range l.o.repeat {
			err := l.trial(ctx, func(ctx context.Context, t *trial) error {
				n, err := t.second(ctx, img, backend)
				f.Values = append(f.Values, float64(n))
				return err
			})
			if err != nil {
				return fmt.Errorf("%s: %w", backend, err)
			}
		}
		r.add(f)
	}
	return nil
}

// second has two nodes read the whole image, one after the other.
func (t *trial) second(ctx context.Context, img *image, backend string) (blobBytes int64, err error) {
	if err := t.startSupernode(ctx); err != nil {
		return 0, err
	}
	var before int64
	for _, host := range nodeHosts {
		if before, err = logSize(t.accessLog()); err != nil {
			return 0, err
		}
		n, err := t.startNode(ctx, host, backend)
		if err != nil {
			return 0, err
		}
		root, err := n.mount(ctx, img)
		if err != nil {
			return 0, err
		}
		tree, err := listTree(root)
		if err != nil {
			return 0, err
		}
		if _, err := readThrough(tree.files, 1<<20)(ctx, root); err != nil {
			return 0, err
		}
		if err := n.awaitComplete(ctx, img); err != nil {
			return 0, err
		}
	}
	return sentSince(t.accessLog(), before)
}

func logSize(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// sentSince returns how many bytes of blobs the registry has sent by what it wrote
// into its access log from an offset on.
func sentSince(path string, offset int64) (int64, error) {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // only read
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return 0, err
	}
	return blobBytes(f)
}

// download is a line of an access log in the form of Apache's: of a GET of a blob,
// with status and bytes.
var download = regexp.MustCompile(`"GET /v2/\S+/blobs/\S+ HTTP/[0-9.]+" 20[06] ([0-9]+) `)

func blobBytes(log io.Reader) (total int64, err error) {
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		match := download.FindStringSubmatch(lines.Text() + " ")
		if match == nil {
			continue
		}
		n, err := strconv.ParseInt(match[1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the registry's access log: %w", err)
		}
		total += n
	}
	return total, lines.Err()
}
