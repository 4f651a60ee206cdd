package content

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"golang.org/x/sync/errgroup"
)

// Sizer is a Source that knows how long its blobs are. Without it VerifyBlobs
// sees a blob that is too short, but not one that goes on after its last group.
type Sizer interface {
	// Size returns the length of a blob in bytes.
	Size(ctx context.Context, blob *chunkfmt.Blob) (int64, error)
}

// VerifyOptions of VerifyBlobs.
type VerifyOptions struct {
	// Workers is how many groups are read at the same time; each takes up to
	// 34 MiB. Default: the number of processors.
	Workers int
	// MaxFailures is after how many failures to stop. Default 1.
	MaxFailures int
	// Progress, if not nil, is called after each group, never concurrently.
	Progress func(Progress)
}

// Progress says how far a verification is.
type Progress struct {
	// Groups and Bytes (as stored) are done, of TotalGroups and TotalBytes.
	Groups, TotalGroups int
	Bytes, TotalBytes   int64
}

// Failure is one group, blob or chunk that is not what the tree says.
type Failure struct {
	// Blob is zero for a chunk of zeros.
	Blob chunkfmt.Digest
	// Group is the number of the group, and -1 when the failure is the whole
	// blob's.
	Group int
	// Paths of the files that have content there, at most maxPaths of them.
	Paths []string
	// More is the number of further paths.
	More int
	// Err wraps ErrCorrupt, or is the error of the Source.
	Err error
}

// maxPaths is how many files a Failure lists.
const maxPaths = 10

// Error names the files, the blob and the group.
func (f Failure) Error() string {
	var b strings.Builder
	for i, p := range f.Paths {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(p)
	}
	if f.More > 0 {
		fmt.Fprintf(&b, " and %d more", f.More)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	switch {
	case f.Group >= 0:
		fmt.Fprintf(&b, "blob %s, group %d: ", f.Blob, f.Group)
	case !f.Blob.IsZero():
		fmt.Fprintf(&b, "blob %s: ", f.Blob)
	}
	return b.String() + f.Err.Error()
}

// Unwrap returns Err.
func (f Failure) Unwrap() error { return f.Err }

// VerifyBlobs reads all blobs that the tree defines and checks each group's
// stored bytes, that they decode, and each chunk's digest, those of zeros
// included. Of Unproven blobs only what holds chunks is read, and of blobs of
// another length nothing.
//
// It returns what is wrong, in the order of blobs and groups, and an error
// only when it could not go on to the end: that of ctx.
func VerifyBlobs(ctx context.Context, t *chunkfmt.Tree, src Source, o VerifyOptions) ([]Failure, error) {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.MaxFailures <= 0 {
		o.MaxFailures = 1
	}
	v := &blobVerifier{tree: t, src: src, o: o, bad: map[uint32]int{}, skip: map[uint32]bool{}}
	v.holes()
	v.sizes(ctx)
	if len(v.failures) < o.MaxFailures {
		v.groups(ctx)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("verifying blobs: %w", err)
	}
	return v.result(), nil
}

// blobVerifier is one run of VerifyBlobs.
type blobVerifier struct {
	tree *chunkfmt.Tree
	src  Source
	o    VerifyOptions

	mu       sync.Mutex
	progress Progress
	failures []Failure
	// bad has the chunks that fail, each with the failure it belongs to.
	bad map[uint32]int
	// skip has the blobs that are missing or of another length; set before the
	// workers start.
	skip map[uint32]bool
}

// fail records a failure of the chunks from first up to last.
func (v *blobVerifier) fail(f Failure, first, last int) (enough bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.failures) >= v.o.MaxFailures {
		return true // other workers may have been on their way
	}
	for i := first; i < last; i++ {
		v.bad[uint32(i)] = len(v.failures) //nolint:gosec // G115: places in Tree.Chunks have 32 bits
	}
	v.failures = append(v.failures, f)
	return len(v.failures) >= v.o.MaxFailures
}

// holes checks the chunks of zeros, which come sorted by length.
func (v *blobVerifier) holes() {
	var z zeros
	for i := range v.tree.Chunks {
		c := &v.tree.Chunks[i]
		if c.Blob != chunkfmt.Hole {
			return
		}
		if got := z.digest(int64(c.Length)); got != c.Digest {
			err := fmt.Errorf("%w: %d zeros have digest %s, not %s", ErrCorrupt, c.Length, got, c.Digest)
			if v.fail(Failure{Group: -1, Err: err}, i, i+1) {
				return
			}
		}
	}
}

// zeros hashes zeros; asking for growing lengths takes one pass.
type zeros struct {
	h    hash.Hash
	done int64
}

func (z *zeros) digest(length int64) chunkfmt.Digest {
	if z.h == nil || length < z.done {
		z.h, z.done = sha256.New(), 0
	}
	var block [4096]byte
	for z.done < length {
		n := min(length-z.done, int64(len(block)))
		z.h.Write(block[:n])
		z.done += n
	}
	return chunkfmt.Digest(z.h.Sum(nil))
}

// sizes checks the lengths of blobs, if the source knows them.
func (v *blobVerifier) sizes(ctx context.Context) {
	sizer, ok := v.src.(Sizer)
	if !ok {
		return
	}
	for i := range v.tree.Blobs {
		blob := &v.tree.Blobs[i]
		if blob.External {
			continue
		}
		size, err := sizer.Size(ctx, blob)
		if err == nil && size != blob.Size {
			err = fmt.Errorf("%w: it has %d bytes, want %d", ErrCorrupt, size, blob.Size)
		}
		if err == nil {
			continue
		}
		v.skip[uint32(i)] = true
		first, _ := chunksOf(v.tree, chunkfmt.GroupRef{Blob: uint32(i)})
		_, last := chunksOf(v.tree, chunkfmt.GroupRef{Blob: uint32(i), Group: ^uint32(0) - 1})
		if v.fail(Failure{Blob: blob.Digest, Group: -1, Err: err}, first, last) {
			return
		}
	}
}

// errEnough ends the reading of groups when there are enough failures.
var errEnough = errors.New("enough failures")

// groups checks all groups with several workers.
func (v *blobVerifier) groups(ctx context.Context) {
	refs := v.refs()
	workers, ctx := errgroup.WithContext(ctx)
	queue := make(chan chunkfmt.GroupRef)
	for range min(v.o.Workers, len(refs)) {
		workers.Go(func() error {
			var buffers buffers
			for ref := range queue {
				if err := v.group(ctx, ref, &buffers); err != nil {
					return err
				}
			}
			return nil
		})
	}
feed:
	for _, ref := range refs {
		select {
		case queue <- ref:
		case <-ctx.Done():
			break feed
		}
	}
	close(queue)
	_ = workers.Wait() // errEnough or that of ctx, which the caller looks at
}

// refs returns the groups to read and sets the totals.
func (v *blobVerifier) refs() []chunkfmt.GroupRef {
	var refs []chunkfmt.GroupRef
	for b := range v.tree.Blobs {
		blob := &v.tree.Blobs[b]
		if v.skip[uint32(b)] {
			continue
		}
		for g := range blob.Groups {
			ref := chunkfmt.GroupRef{Blob: uint32(b), Group: uint32(g)}
			if blob.Unproven {
				if first, last := chunksOf(v.tree, ref); first == last {
					continue
				}
			}
			refs = append(refs, ref)
			v.progress.TotalBytes += int64(blob.Groups[g].Stored)
		}
	}
	v.progress.TotalGroups = len(refs)
	return refs
}

// buffers are what a worker uses again and again.
type buffers struct{ stored, plain []byte }

func (v *blobVerifier) group(ctx context.Context, ref chunkfmt.GroupRef, b *buffers) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g := v.tree.Group(ref)
	b.stored = room(b.stored, int(g.Stored))[:g.Stored]
	first, last := chunksOf(v.tree, ref)
	enough := false
	if i, err := v.check(ctx, ref, b, first, last); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if i >= first {
			first, last = i, i+1
		}
		enough = v.fail(Failure{Blob: v.tree.Blobs[ref.Blob].Digest, Group: int(ref.Group), Err: err}, first, last)
	}
	v.done(g)
	if enough {
		return errEnough
	}
	return nil
}

// check verifies a group and the chunks in it. It returns the first chunk that
// is wrong, or -1 when the whole group is.
func (v *blobVerifier) check(ctx context.Context, ref chunkfmt.GroupRef, b *buffers, first, last int) (int, error) {
	blob, g := &v.tree.Blobs[ref.Blob], v.tree.Group(ref)
	if err := v.src.ReadAt(ctx, blob, b.stored, g.Offset); err != nil {
		return -1, err
	}
	if g.Codec == chunkfmt.Filler {
		if blob.Unproven {
			return -1, nil
		}
		return -1, checkStored(g, b.stored)
	}
	plain, err := decode(g, !blob.Unproven, b.stored, b.plain)
	if err != nil {
		return -1, err
	}
	b.plain = plain
	for i := first; i < last; i++ {
		if err := verifyChunk(&v.tree.Chunks[i], plain); err != nil {
			return i, err
		}
	}
	return -1, nil
}

func (v *blobVerifier) done(g *chunkfmt.Group) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.progress.Groups++
	v.progress.Bytes += int64(g.Stored)
	if v.o.Progress != nil {
		v.o.Progress(v.progress)
	}
}

// result adds to the failures the files that they touch.
func (v *blobVerifier) result() []Failure {
	if len(v.bad) > 0 {
		linked := map[uint32][]int{} // a file with a million names is looked at once
		for path, inode := range v.tree.Walk() {
			touched, ok := linked[inode]
			if !ok {
				touched = slices.Sorted(maps.Keys(v.touched(inode)))
			}
			if v.tree.Inodes[inode].Nlink > 1 && v.tree.Kind(inode) == chunkfmt.File {
				linked[inode] = touched
			}
			for _, at := range touched {
				f := &v.failures[at]
				if len(f.Paths) < maxPaths {
					f.Paths = append(f.Paths, path)
				} else {
					f.More++
				}
			}
		}
	}
	slices.SortStableFunc(v.failures, func(a, b Failure) int {
		return cmp.Or(cmp.Compare(v.order(a), v.order(b)), cmp.Compare(a.Group, b.Group))
	})
	return v.failures
}

// order is where a failure's blob is in the tree.
func (v *blobVerifier) order(f Failure) int {
	return slices.IndexFunc(v.tree.Blobs, func(b chunkfmt.Blob) bool { return b.Digest == f.Blob })
}

// touched returns the failures that a file has bad chunks of.
func (v *blobVerifier) touched(inode uint32) map[int]bool {
	n := &v.tree.Inodes[inode]
	if v.tree.Kind(inode) != chunkfmt.File {
		return nil
	}
	var touched map[int]bool
	for _, run := range v.tree.Runs[n.First : n.First+n.Count] {
		count := run.Count
		if run.Repeat {
			count = 1
		}
		for i := range count {
			if at, ok := v.bad[run.Chunk+i]; ok {
				if touched == nil {
					touched = map[int]bool{}
				}
				touched[at] = true
			}
		}
	}
	return touched
}
