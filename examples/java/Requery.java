import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;

/**
 * A client of Requery on the JDK (17 or newer); its records come from the OpenAPI document.
 *
 * <pre>javac -d build *.java && java -cp build Requery "steele stake"</pre>
 */
public final class Requery {
    /** Time for the network, in addition to the deadline. */
    private static final int SLACK_MS = 25;

    private final HttpClient client = HttpClient.newHttpClient();
    private final String url;
    private final String apiKey;

    /** For a service at a URL; the key may be null. */
    public Requery(String url, String apiKey) {
        this.url = url;
        this.apiKey = apiKey;
    }

    /**
     * Texts to search with: the query, then its rewrites, best first. A search must not fail because
     * rewrites are missing, so that a failure gives the query alone.
     */
    public List<String> texts(String query, int deadlineMs) throws InterruptedException {
        List<String> texts = new ArrayList<>(List.of(query));
        var request =
            new Api.RewriteRequest(query, null, null, deadlineMs, null, null, null);
        try {
            rewrite(request, deadlineMs).rewrites().forEach(one -> texts.add(one.text()));
        } catch (IOException | IllegalArgumentException error) {
            System.err.println("no rewrites: " + error.getMessage());
        }
        return texts;
    }

    /** The service's answer; an IOException says what the service or the network said instead. */
    public Api.RewriteResponse rewrite(Api.RewriteRequest asked, int deadlineMs)
        throws IOException, InterruptedException {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url + "/v1/rewrite"))
            .header("content-type", "application/json")
            .timeout(Duration.ofMillis(deadlineMs + SLACK_MS))
            .POST(HttpRequest.BodyPublishers.ofString(Json.write(asked)));
        if (apiKey != null) {
            request.header("authorization", "Bearer " + apiKey);
        }
        HttpResponse<String> response =
            client.send(request.build(), HttpResponse.BodyHandlers.ofString());
        if (response.statusCode() != 200) {
            Api.Problem problem = Json.read(response.body(), Api.Problem.class);
            throw new IOException(
                response.statusCode() + " " + problem.type() + ": " + problem.detail());
        }
        return Json.read(response.body(), Api.RewriteResponse.class);
    }

    public static void main(String[] arguments) throws InterruptedException {
        String url = System.getenv().getOrDefault("REQUERY_URL", "http://localhost:8000");
        Requery requery = new Requery(url, System.getenv("REQUERY_API_KEY"));
        String query = arguments.length > 0 ? arguments[0] : "steele stake";
        System.out.println(String.join("\n", requery.texts(query, 2000)));
    }
}
