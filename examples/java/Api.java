// Made by "python -m examples.generate java" from the OpenAPI document of Requery; do not edit.
import java.util.List;
import java.util.Map;

/** What Requery takes and returns. A field that may be absent is null. */
public final class Api {
    private Api() {}

    /** A query and a rewrite to judge. */
    public record Pair(
        String query,
        String rewrite) {
    }

    /** An error, as RFC 9457 has it. */
    public record Problem(
        String type,
        String title,
        Integer status,
        String detail,
        String requestId,
        List<ProblemError> errors) {
    }

    /** What is wrong with one field. */
    public record ProblemError(
        String field,
        String detail) {
    }

    /** A rejected candidate. */
    public record Rejected(
        String text,
        Double relevance,
        String reason,
        Integer votes) {
    }

    /** Body of POST /relevance. */
    public record RelevanceRequest(
        List<Pair> pairs,
        String modelVersion,
        Integer deadlineMs) {
        public RelevanceRequest(List<Pair> pairs) {
            this(pairs, null, null);
        }
    }

    /** Answer of POST /relevance. */
    public record RelevanceResponse(
        List<Double> relevance,
        String modelVersion,
        String requestId) {
    }

    /** One accepted rewrite. */
    public record Rewrite(
        String text,
        Double relevance,
        Integer votes) {
    }

    /** Body of POST /rewrite. */
    public record RewriteRequest(
        String query,
        Integer maxRewrites,
        Double minRelevance,
        Integer deadlineMs,
        String modelVersion,
        String unitId,
        Boolean explain) {
        public RewriteRequest(String query) {
            this(query, null, null, null, null, null, null);
        }
    }

    /** Answer of POST /rewrite. */
    public record RewriteResponse(
        String query,
        List<Rewrite> rewrites,
        String status,
        String source,
        String modelVersion,
        String requestId,
        List<Rejected> rejected,
        Map<String, Double> stagesMs) {
    }
}
